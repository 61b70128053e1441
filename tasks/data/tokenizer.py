"""Text into token ids and back: BPE, Unigram, words or characters, trained or given, kept in one tokenizer.json.

    bpe, unigram   pieces of the text's UTF-8 bytes, every digit one of its own: any text is written and read back as it was
    word           what stands between spaces, such as phonemes; other words are <unk>
    char           characters; those that were not seen in training are <unk>
    of Marian      SentencePiece's of two languages over one vocabulary, as `tasks.data.pieces` has them

A given tokenizer may spell its special tokens otherwise, and have them at any ids: they are attributes, such as `tokenizer.pad`.
A text that happens to contain "</s>" means these four characters, not the token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import chain, dropwhile
from pathlib import Path
from typing import Any

from tasks.data import DataError
from tasks.data.pieces import FORMAT, VOCABULARY, Pieces
from tasks.data.text_files import optional
from zoo import files
from zoo.pretrained.fast_tokenizer import SPELLINGS, special_tokens

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
"""Special tokens of a tokenizer that is trained here, at ids 0 to 3."""
LEVELS = ("bpe", "unigram", "word", "char")
LEAST = len(SPECIAL) + 256
"""Tokens that BPE and Unigram have at least: every byte is one."""


class TextTokenizer:
    """A `tokenizers.Tokenizer`, or what is like one, that knows its special tokens; `path` is told in complaints.

    pad, bos, eos, unk, cls, sep, mask: their ids, found by name; `DataError` when one is asked for that the tokenizer lacks.
    target: what writes the ids of the target language: itself, but for Marian's, which have the same ids for other pieces.
    """

    pad: int
    bos: int
    eos: int
    unk: int
    cls: int
    sep: int
    mask: int

    def __init__(self, inner: Any, path: Path | None = None) -> None:
        self.inner, self.path = inner, path
        inner.no_padding()
        inner.no_truncation()
        inner.encode_special_tokens = True  # as plain text; the file does not keep this setting
        vocabulary = inner.get_vocab()
        self.vocab_size: int = max(vocabulary.values(), default=-1) + 1
        declared = {token.content for token in inner.get_added_tokens_decoder().values() if token.special}
        self.special = {kind: vocabulary[spelling] for kind, spelling in special_tokens(vocabulary, declared).items()}
        if isinstance(inner, Pieces):
            self.special["bos"] = self.special["pad"]  # with which Marian's decoders start
        vars(self).update(self.special)
        other = inner.other if isinstance(inner, Pieces) and inner.side == "source" else None
        self.target = self if other is None else TextTokenizer(other, path)

    def starting(self, start: Any) -> TextTokenizer:
        """A copy whose `bos` is the token that a decoder starts with, itself for None. Errors: `DataError` for no such token."""
        if start is None:
            return self
        if type(start) is not int or not 0 <= start < self.vocab_size:
            raise DataError(f"decoding must start with a token from 0 to {self.vocab_size - 1}, got {start!r}")
        copy = TextTokenizer(self.inner, self.path)
        for tokenizer in (copy, copy.target):
            tokenizer.bos = tokenizer.special["bos"] = start
        return copy

    def __getattr__(self, name: str) -> Any:
        if name in SPELLINGS:
            raise DataError(f"{self.path or 'the tokenizer'} has no {name} token: expected one of {', '.join(SPELLINGS[name])}")
        raise AttributeError(name)

    @property
    def fingerprint(self) -> str:
        """Tells two tokenizers apart."""
        return blake2b(self.inner.to_str().encode(), digest_size=8).hexdigest()

    def with_padding(self) -> TextTokenizer:
        """Itself, or where it has no token for padding, as GPT-2's, a copy with one more token at the end."""
        if "pad" in self.special:  # as in all of Marian's
            return self
        inner = type(self.inner).from_str(self.inner.to_str())
        inner.add_special_tokens([SPELLINGS["pad"][0]])
        return TextTokenizer(inner, self.path)

    @property
    def pad_or_eos(self) -> int:
        """What fills up rows of which no one looks at the end, as of texts that a language model foretells."""
        return self.special.get("pad", self.eos)

    def encode(self, text: str) -> list[int]:
        """Ids without `bos` and `eos`."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """A word or character that is spelled like a special token is an unknown one; left out where there is no `unk`."""
        special, unknown = set(self.special.values()), [self.special[kind] for kind in ("unk",) if kind in self.special]
        found = self.inner.encode_batch(list(texts), add_special_tokens=False)
        return [[n for token in e.ids for n in ((token,) if token not in special else unknown)] for e in found]

    def decode(self, ids: Iterable[int]) -> str:
        """The text up to the first `eos`; `pad` and `bos` are left out."""
        start, end = {self.special.get("pad"), self.special.get("bos")}, self.special.get("eos")
        ids = list(dropwhile(start.__contains__, ids))
        ids = ids[: ids.index(end)] if end in ids else ids
        return self.inner.decode([token for token in ids if token not in start], skip_special_tokens=False)

    def decode_batch(self, rows: Iterable[Iterable[int]]) -> list[str]:
        return [self.decode(row) for row in rows]

    def require(self, *kinds: str) -> TextTokenizer:
        """Itself. Errors: `DataError` if it lacks one of these special tokens."""
        for kind in kinds:
            getattr(self, kind)
        return self

    def require_vocab_size(self, vocab_size: int) -> None:
        """`DataError` unless a model with that many tokens is one for this tokenizer."""
        if vocab_size != self.vocab_size:
            raise DataError(
                f"{self.path or 'the tokenizer'} has {self.vocab_size} tokens, but the model's vocab_size is {vocab_size}: "
                "give the tokenizer that the model was trained with"
            )

    def save(self, path: str | Path) -> None:
        """Write a tokenizer.json, whole or not at all."""
        files.write_bytes(Path(path), self.inner.to_str(pretty=True).encode())


def load_tokenizer(path: str | Path) -> TextTokenizer:
    """A tokenizer.json, or the one in a folder, or Marian's files in one. Errors: `DataError` if it is missing or damaged."""
    path = Path(path)
    if (path / "source.spm").is_file() or ((path / VOCABULARY).is_file() and not (path / "tokenizer.json").is_file()):
        return TextTokenizer(Pieces.read(path), path)
    path = path / "tokenizer.json" if path.is_dir() else path
    tokenizers = optional("tokenizers")
    if not path.is_file():
        raise DataError(f"{path} is not there: expected a tokenizer.json")
    try:
        content = path.read_text(encoding="utf-8")
        inner = Pieces.of(content) if FORMAT in content[:100] else tokenizers.Tokenizer.from_str(content)
    except DataError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"{path} is truncated or damaged, not a tokenizer.json ({error})") from error
    return TextTokenizer(inner, path)


def train_tokenizer(texts: Iterable[str], level: str = "bpe", vocab_size: int = 8000, apart: bool = False) -> TextTokenizer:
    """A tokenizer of at most `vocab_size` tokens, fewer where the texts do not give as many.

    apart: of bpe and unigram, whether every punctuation mark is a token of its own, as in BERT's: what is to be found in a text
           may end before one.
    Errors: `DataError` for an unknown level, for a `vocab_size` too small for the special tokens and bytes, and without texts.
    """
    least = LEAST if level in ("bpe", "unigram") else len(SPECIAL) + 1
    if level not in LEVELS:
        raise DataError(f"level must be {', '.join(LEVELS)}, got {level!r}")
    if vocab_size < least:
        raise DataError(f"vocab_size must be {least} or more for {level}, got {vocab_size}")
    texts = iter(texts)
    if (first := next((text for text in texts if text.strip()), None)) is None:
        raise DataError("there is no text to train the tokenizer on")
    inner, trainer = blank(level, vocab_size, apart)
    inner.encode_special_tokens = True
    inner.train_from_iterator(chain([first], texts), trainer)
    return TextTokenizer(settled(inner) if level == "unigram" else inner)


def settled(inner: Any) -> Any:
    """The same tokenizer for the same texts: the trainer leaves last digits, and the order of bytes it has not seen, to chance.

    Those bytes come last and differ by 0.0001 from one to the next; they all get the least score.
    """
    content = json.loads(inner.to_str())
    special, pieces = (content["model"]["vocab"][part] for part in (slice(len(SPECIAL)), slice(len(SPECIAL), None)))
    pieces.sort(key=lambda row: -row[1])
    unseen = len(pieces) - max((n for n, (piece, _) in enumerate(pieces, 1) if len(piece) > 1), default=0)
    scores = [round(score, 6) for _, score in pieces[: len(pieces) - unseen]] + [round(pieces[-1][1], 6)] * unseen
    settled = [[piece, score] for (piece, _), score in zip(pieces, scores, strict=True)]
    content["model"]["vocab"] = special + sorted(settled, key=lambda row: (-row[1], row[0]))
    return optional("tokenizers").Tokenizer.from_str(json.dumps(content))


def blank(level: str, vocab_size: int, apart: bool) -> tuple[Any, Any]:
    """A tokenizer that knows nothing yet, and its trainer."""
    tokenizers = optional("tokenizers")
    models, trainers = tokenizers.models, tokenizers.trainers
    before, after = tokenizers.pre_tokenizers, tokenizers.decoders
    options: dict[str, Any] = dict(vocab_size=vocab_size, special_tokens=list(SPECIAL), show_progress=False)
    if level in ("bpe", "unigram"):
        options["initial_alphabet"] = before.ByteLevel.alphabet()
        if level == "bpe":
            inner, trainer = tokenizers.Tokenizer(models.BPE()), trainers.BpeTrainer(**options)
        else:
            inner, trainer = tokenizers.Tokenizer(models.Unigram()), trainers.UnigramTrainer(unk_token="<unk>", **options)
        marks = [before.Punctuation("isolated")] if apart else []
        digits = before.Digits(individual_digits=True)
        inner.pre_tokenizer = before.Sequence([digits, *marks, before.ByteLevel(add_prefix_space=False)])
        inner.decoder = after.ByteLevel()
        return inner, trainer
    inner, trainer = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>")), trainers.WordLevelTrainer(**options)
    if level == "word":
        inner.pre_tokenizer = before.WhitespaceSplit()  # without a decoder, words are joined by spaces
    else:
        inner.pre_tokenizer = before.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
        inner.decoder = after.Fuse()
    return inner, trainer
