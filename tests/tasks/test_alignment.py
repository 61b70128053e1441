"""Words, their tokens, and windows of them: every token belongs to the word that it came from, every word counts once.

What goes wrong elsewhere: huggingface/transformers 10263 (labels moved where a tokenizer splits words), 8958 (ids of words, and
special tokens, at truncation), huggingface/notebooks 250 (words that the tokenizer makes nothing of move all labels behind them).
"""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from tasks.data.alignment import Encoded, cut, encode, firsts, word_of
from tasks.data.overlaps import owners, windows
from tasks.data.tagged import joined, words_of
from tasks.data.tokenizer import SPECIAL, TextTokenizer, train_tokenizer
from tasks.data.windows import IGNORED

PIECES = [
    "a", "bc", "Straße", "İ", "ǆ", "é", "e\u0301", "o\u0302\u0323", "ﬁ", "ﷺ", "㍿", "①", "½", "한", "\u1112\u1161\u11ab", "日本",
    "ก็", "न्यू", "👍🏽", "👨\u200d👩\u200d👧", "🇩🇪", "❤\ufe0f", " ", "  ", "\r\n", "\n", "\t", "\u00a0", "\u3000", "\u00ad",
    "\u200b", "\ufeff", "\x00", ".", ",", "...", "12", "٣", "'", "\u0301", "##", "[CLS]", "<s>", "\U0001d538", "ﾊﾟ",
]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=12)


def characters(normalizer) -> TextTokenizer:
    """A token a character of the normalised text, whatever it is."""
    vocabulary = {token: n for n, token in enumerate(SPECIAL)} | {chr(c): c + 4 for c in range(32, 127)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    if normalizer is not None:
        inner.normalizer = normalizer
    return TextTokenizer(inner)


def of_bert(text: str) -> TextTokenizer:
    inner = Tokenizer(models.WordPiece(unk_token="<unk>"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    inner.train_from_iterator([text], trainers.WordPieceTrainer(vocab_size=300, special_tokens=[*SPECIAL], show_progress=False))
    return TextTokenizer(inner)


TEXT = " ".join(PIECES) + " the cat sat on the mat"
NORMALIZERS = {
    "none": None,
    "NFC": normalizers.NFC(),
    "NFD": normalizers.NFD(),
    "NFKC": normalizers.NFKC(),
    "NFKD": normalizers.NFKD(),
    "bert": normalizers.BertNormalizer(),
    "accents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]),
    "replace": normalizers.Sequence([normalizers.Replace("a", "xyz"), normalizers.Replace(Regex("[0-9]+"), "0")]),
    "delete": normalizers.Replace(Regex("[bé.]"), ""),
}
CHARACTERS = {name: characters(normalizer) for name, normalizer in NORMALIZERS.items()}
TRAINED = {level: train_tokenizer([TEXT], level, 300) for level in ("bpe", "unigram", "word", "char")} | {"bert": of_bert(TEXT)}


@given(texts)
def test_words_are_cut_between_characters_that_belong_together(text):
    words = words_of(text)
    assert "".join(text[a:b] for a, b in words) == "".join(c for c in text if not c.isspace())
    assert all(a < b for a, b in words)
    assert all(b <= c for (_, b), (c, _) in pairwise(words))
    for start, _ in words:
        marks = unicodedata.category(text[start]).startswith("M") and start > 0
        assert not (marks and not text[start - 1].isspace())


@pytest.mark.parametrize("name", CHARACTERS)
@given(text=texts)
def test_each_word_has_the_tokens_that_it_has_by_itself(name, text):
    """Whatever normalising does to its length: the tokenizer of characters tells which are whose."""
    tokenizer = CHARACTERS[name]
    words = words_of(text)
    encoding = tokenizer.inner.encode(text, add_special_tokens=False)
    owner = word_of(encoding.offsets, words)
    for n, (start, end) in enumerate(words):
        alone = tokenizer.inner.encode(text[start:end], add_special_tokens=False).ids
        assert [token for token, word in zip(encoding.ids, owner, strict=True) if word == n] == alone


@pytest.mark.parametrize("name", TRAINED)
@given(text=texts)
def test_a_label_stands_at_the_first_token_of_a_word(name, text):
    tokenizer, words = TRAINED[name], words_of(text)
    (encoded,) = encode(tokenizer, [text], [words])
    offsets = tokenizer.inner.encode(text, add_special_tokens=False).offsets
    places = [first for first in encoded.firsts if first >= 0]
    assert places == sorted({*places})
    for first, (start, end) in zip(encoded.firsts, words, strict=True):
        touching = [n for n, (a, b) in enumerate(offsets) if max(a, start) < min(b, end)]
        others = {n for n in touching if word_of(offsets, words)[n] < words.index((start, end))}
        assert first == next((n for n in touching if n not in others), -1)
        if touching and first < 0:
            assert others == {*touching}, "all of it is in tokens of the word before"


def test_words_without_tokens_move_no_label():
    """As in the thread of notebooks 250: a soft hyphen, and what a normaliser deletes."""
    text = joined(["one", "\u00ad", "two", "\ufeff\u200b", "three"], ())
    (encoded,) = encode(TRAINED["bert"], [text.text], [text.words])
    assert [first >= 0 for first in encoded.firsts] == [True, False, True, False, True]
    (window,) = cut(encoded, TRAINED["bert"], 64, 0)
    labels = window.labels([10, 11, 12, 13, 14])
    assert [x for x in labels if x != IGNORED] == [10, 12, 14]
    assert labels[0] == labels[-1] == IGNORED


def test_a_token_of_two_words_is_the_first_ones():
    assert firsts([(0, 4), (4, 5)], [(0, 3), (3, 4), (4, 5)]) == [0, -1, 1]
    assert firsts([(0, 1), (1, 5)], [(0, 1), (2, 5)]) == [0, 1]  # a space belongs to the token behind it
    assert firsts([(0, 1), (1, 2), (2, 5)], [(0, 1), (2, 5)]) == [0, 2]  # or is one of its own
    assert firsts([(0, 0), (0, 1), (0, 1)], [(0, 1)]) == [1]  # of bytes of one character the first, but none of nothing


# ---------------------------------------------------------------------------------------------------------------------- windows


@given(st.integers(0, 60), st.integers(1, 20), st.data())
def test_windows_cover_all_and_share_as_much_as_asked(length, width, data):
    overlap = data.draw(st.integers(0, width - 1))
    found = windows(length, width, overlap)
    assert {token for start, end in found for token in range(start, end)} == {*range(length)}
    assert all(end - start == min(width, length) for start, end in found)
    assert all(a < c and b - c >= overlap for (a, b), (c, _) in pairwise(found))
    assert len(found) == 1 or len(windows(length, width, 0)) <= len(found)


@given(st.integers(1, 60), st.integers(1, 20), st.data())
def test_each_token_counts_where_it_has_most_context(length, width, data):
    found = windows(length, width, data.draw(st.integers(0, width - 1)))
    for token, owner in enumerate(owners(length, found)):
        sides = []
        for start, end in found:
            ends = [x for x, closed in ((token - start, start > 0), (end - 1 - token, end < length)) if closed]
            sides.append(min(ends, default=length) if start <= token < end else -1)
        assert sides[owner] == max(sides) >= 0
        assert sides.index(max(sides)) == owner


@given(st.lists(st.sampled_from(["the", "cat", "12", "naïve", "日本"]), min_size=1, max_size=40), st.integers(4, 30), st.data())
def test_each_word_counts_once_in_a_long_text(words, context, data):
    tokenizer, text = TRAINED["bpe"], joined(words, ())
    (encoded,) = encode(tokenizer, [text.text], [text.words])
    found = cut(encoded, tokenizer, context, data.draw(st.integers(0, (context - 2) // 2)))
    assert sorted(word for window in found for _, word in window.words) == [*range(len(words))]
    for window in found:
        assert len(window.ids) <= context
        assert (window.ids[0], window.ids[-1]) == (tokenizer.cls, tokenizer.sep)
        for place, word in window.words:
            assert window.ids[place] == encoded.ids[encoded.firsts[word]]
        labels = window.labels([*range(len(words))])
        assert [(n, x) for n, x in enumerate(labels) if x != IGNORED] == window.words


def test_a_text_of_nothing_is_one_window_without_words():
    (window,) = cut(Encoded([], []), TRAINED["bpe"], 8, 2)
    assert len(window.ids) == 2
    assert window.words == []
