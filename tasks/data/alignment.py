"""Words and sub-words: which tokens a word became, and windows of them with a label where a word begins.

A tokenizer says from which characters of the text each token came, whatever it has replaced, left out or put together before.
A token belongs to the word that holds the first of its characters that are in a word; the word's label stands at its first token,
all others are `IGNORED`. A word that a tokenizer makes nothing of, or that it puts into the token of the one before, has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tasks.data.overlaps import owners, windows
from tasks.data.tokenizer import TextTokenizer
from tasks.data.windows import IGNORED

Place = tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """Token ids of a text, and the first token of each word, -1 where it has none."""

    ids: list[int]
    firsts: list[int]


def encode(tokenizer: TextTokenizer, texts: Sequence[str], words: Sequence[Sequence[Place]]) -> list[Encoded]:
    """Texts, each with its words as (start, end) in characters, in order."""
    rows = zip(pieces(tokenizer, texts), words, strict=True)
    return [Encoded(ids, firsts(offsets, places)) for (ids, offsets), places in rows]


def pieces(tokenizer: TextTokenizer, texts: Sequence[str]) -> Iterator[tuple[list[int], list[Place]]]:
    """Ids and the characters that each token is of, as (start, end). What is spelled like a special token is an unknown one."""
    special, unknown = {*tokenizer.special.values()}, tokenizer.special.get("unk", -1)
    for found in tokenizer.inner.encode_batch([*texts], add_special_tokens=False):
        pairs = ((unknown if id in special else id, place) for id, place in zip(found.ids, found.offsets, strict=True))
        kept = [pair for pair in pairs if pair[0] >= 0]
        yield [id for id, _ in kept], [place for _, place in kept]


def firsts(offsets: Sequence[Place], words: Sequence[Place]) -> list[int]:
    """The first token of each word, -1 for none."""
    found = [-1] * len(words)
    for token, word in enumerate(word_of(offsets, words)):
        if word >= 0 and found[word] < 0:
            found[word] = token
    return found


def word_of(offsets: Sequence[Place], words: Sequence[Place]) -> list[int]:
    """The word of each token, -1 where its characters are in none."""
    found, first = [], 0
    for start, end in offsets:
        while first < len(words) and words[first][1] <= start:
            first += 1
        found.append(first if start < end and first < len(words) and words[first][0] < end else -1)
    return found


@dataclass(frozen=True)
class Window:
    """A row for a model: ids with the special tokens around them; (place in the row, word) of each word that counts here."""

    ids: list[int]
    words: list[Place]

    def labels(self, known: Sequence[int]) -> list[int]:
        """A label a token, where `known` has one a word."""
        found = [IGNORED] * len(self.ids)
        for place, word in self.words:
            found[place] = known[word]
        return found


def cut(encoded: Encoded, tokenizer: TextTokenizer, context: int, overlap: int) -> list[Window]:
    """Windows of at most `context` tokens, the special ones among them; every word with a token counts in one of them."""
    found = windows(len(encoded.ids), context - 2, overlap)
    owner = owners(len(encoded.ids), found)
    return [
        Window(
            [tokenizer.cls, *encoded.ids[start:end], tokenizer.sep],
            [(first - start + 1, word) for word, first in enumerate(encoded.firsts) if first >= 0 and owner[first] == n],
        )
        for n, (start, end) in enumerate(found)
    ]
