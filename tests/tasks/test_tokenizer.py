"""Tokenizers: what is written comes back, special tokens stay apart from text, and every complaint."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tasks.data import DataError
from tasks.data.cldr import pair
from tasks.data.tokenizer import LEAST, LEVELS, SPECIAL, TextTokenizer, load_tokenizer, train_tokenizer

PHONEMES = ["HH AH0 L OW1", "T AH0 M EY1 T OW2", "W ER1 L D"]


@cache
def cldr_texts() -> list[str]:
    return [text for n in range(1500) for text in pair("de", "en", 0, n)]


@pytest.fixture(scope="module")
def trained() -> dict[str, TextTokenizer]:
    return {level: train_tokenizer(cldr_texts(), level, 600) for level in LEVELS}


AWKWARD = [
    "",
    " ",
    "  a  b ",
    "\n\t\r\n",
    "\x00",
    "\u2028\u0085",
    "🙂‍🙂",
    "日本語",
    "<s>",
    "a</s>b <pad><unk>",
    "ĠHalloĊ",
    "e\u0301é",
    "1234,50",
]


@pytest.mark.parametrize("level", ["bpe", "unigram"])
def test_any_text_comes_back(trained: dict[str, TextTokenizer], level: str):
    @given(st.one_of(st.text(), st.sampled_from(AWKWARD), st.lists(st.sampled_from([*SPECIAL, " ", "ä", "\u0120"])).map("".join)))
    def check(text: str) -> None:
        ids = trained[level].encode(text)
        assert trained[level].decode(ids) == text
        assert min(ids, default=4) >= len(SPECIAL)
        assert max(ids, default=0) < trained[level].vocab_size

    check()
    for text in AWKWARD:
        assert trained[level].decode(trained[level].encode(text)) == text


@pytest.mark.parametrize("level", LEVELS)
def test_special_tokens_are_the_first_four(trained: dict[str, TextTokenizer], level: str):
    tokenizer = trained[level]
    assert [tokenizer.inner.token_to_id(token) for token in SPECIAL] == [0, 1, 2, 3]
    assert [tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.unk] == [0, 1, 2, 3]
    assert trained[level].vocab_size <= 600


@pytest.mark.parametrize("level", LEVELS)
def test_a_saved_one_is_the_same(trained: dict[str, TextTokenizer], level: str, tmp_path: Path):
    trained[level].save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path)
    texts = [*cldr_texts()[:200], *AWKWARD]
    assert loaded.encode_batch(texts) == trained[level].encode_batch(texts) == [trained[level].encode(text) for text in texts]
    assert loaded.fingerprint == trained[level].fingerprint
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("level", LEVELS)
def test_training_is_deterministic(trained: dict[str, TextTokenizer], level: str):
    again = train_tokenizer(iter(cldr_texts()), level, 600)
    assert again.fingerprint == trained[level].fingerprint
    assert train_tokenizer(cldr_texts()[:100], level, 600).fingerprint != trained[level].fingerprint


@pytest.mark.parametrize("level", ["bpe", "unigram"])
def test_pieces_are_learned_and_digits_stay_single(trained: dict[str, TextTokenizer], level: str):
    ids = trained[level].encode("Montag, 12. September 2024")
    assert len(ids) < 18  # of 26 characters
    assert len(trained[level].encode("2024" * 5)) == 20


@pytest.mark.parametrize("level", ["bpe", "unigram"])
def test_punctuation_marks_may_be_tokens_of_their_own(level: str):
    """Then what stands between them can be cut out by whole tokens, however often they stand together."""
    texts = ["f(x=''):", "g(y={}):", "h(a_b=()), k"] * 50
    apart = train_tokenizer(texts, level, 300, apart=True)
    assert [apart.inner.id_to_token(n) for n in apart.encode("f(a=''):")] == ["f", "(", "a", "=", "'", "'", ")", ":"]
    assert apart.decode(apart.encode("  a_b ''): ")) == "  a_b ''): "
    if level == "bpe":  # the other one may keep them apart without being told
        together = train_tokenizer(texts, level, 300)
        assert len(together.encode("f(a=''):")) < 5


def test_words(trained: dict[str, TextTokenizer]):
    words = train_tokenizer(PHONEMES, "word", 100)
    assert words.vocab_size == 4 + len({phoneme for line in PHONEMES for phoneme in line.split()})
    assert words.decode(words.encode("  W OW2  L ")) == "W OW2 L"
    assert words.encode("W </s> XX")[1:] == [words.unk, words.unk]  # text is no special token, known or not
    assert words.decode([words.bos, *words.encode("HH XX"), words.eos, 7, words.pad]) == "HH <unk>"


def test_characters():
    characters = train_tokenizer(["hello world\n", "tomato"], "char", 100)
    assert characters.vocab_size == 4 + len(set("hello world\ntomato"))
    assert characters.decode(characters.encode(" to\nher ")) == " to\nher "
    assert characters.encode("x<s>") == [characters.unk] * 4


def test_decoding_ends_where_the_sentence_does(trained: dict[str, TextTokenizer]):
    tokenizer = trained["bpe"]
    ids, pad, bos, eos = tokenizer.encode("Montag"), tokenizer.pad, tokenizer.bos, tokenizer.eos
    assert tokenizer.decode([pad, bos, *ids, eos, *ids, eos, pad]) == "Montag"
    assert tokenizer.decode_batch([[*ids, eos], [eos, *ids], []]) == ["Montag", "", ""]


def test_one_token_may_begin_and_end_a_sentence(trained: dict[str, TextTokenizer]):
    """As GPT-2's: <|endoftext|> in front is no end."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(["Montag"], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    inner.add_special_tokens(["<|endoftext|>"])
    bare = TextTokenizer(inner)
    with pytest.raises(DataError, match=r"the tokenizer has no pad token: expected one of <pad>, \[PAD\]"):
        bare.require("eos", "pad")
    tokenizer = bare.with_padding().require("pad", "bos", "eos")
    assert tokenizer.with_padding() is tokenizer
    assert tokenizer.vocab_size == bare.vocab_size + 1 == tokenizer.pad + 1
    assert tokenizer.bos == tokenizer.eos == inner.token_to_id("<|endoftext|>")
    ids = tokenizer.encode("Montag <|endoftext|>")
    assert tokenizer.eos not in ids
    assert tokenizer.decode([tokenizer.bos, *ids, tokenizer.eos, *ids, tokenizer.pad]) == "Montag <|endoftext|>"
    assert tokenizer.decode([tokenizer.eos, tokenizer.pad]) == ""


def test_what_only_looks_like_a_special_token_is_a_word():
    """Where special tokens are declared, [MASK] in the texts is none; where none is declared, names decide."""
    words = train_tokenizer(["[MASK] a b"], "word", 100)
    assert "mask" not in words.special
    assert words.decode(words.encode("a [MASK]")) == "a [MASK]"
    undeclared = TextTokenizer(Tokenizer(models.WordLevel({"a": 0, "[SEP]": 1, "[UNK]": 2, "[PAD]": 7}, unk_token="[UNK]")))
    assert undeclared.special == {"pad": 7, "eos": 1, "unk": 2, "sep": 1}
    assert undeclared.vocab_size == 8


def test_padding_and_truncation_of_a_given_file_are_undone(trained: dict[str, TextTokenizer], tmp_path: Path):
    inner = load_again(trained["bpe"])
    inner.enable_padding()
    inner.enable_truncation(3)
    inner.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode_batch(["a", cldr_texts()[0]]) == trained["bpe"].encode_batch(["a", cldr_texts()[0]])


def load_again(tokenizer: TextTokenizer):
    from tokenizers import Tokenizer

    return Tokenizer.from_str(tokenizer.inner.to_str())


def test_complaints(trained: dict[str, TextTokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def complaint(call, *arguments) -> str:
        with pytest.raises(DataError) as caught:
            call(*arguments)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert complaint(load_tokenizer, tmp_path) == f"{tmp_path / 'tokenizer.json'} is not there: expected a tokenizer.json"
    (tmp_path / "tokenizer.json").write_text(trained["bpe"].inner.to_str()[:500])
    assert "truncated or damaged" in complaint(load_tokenizer, tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    assert "truncated or damaged" in complaint(load_tokenizer, tmp_path)
    foreign = json.loads(trained["word"].inner.to_str())
    foreign["added_tokens"] = []
    foreign["model"]["vocab"] = {"<unk>": 0, "a": 1}
    (tmp_path / "tokenizer.json").write_text(json.dumps(foreign))
    lacking = complaint(load_tokenizer(tmp_path).require, "unk", "eos")
    assert lacking.startswith(f"{tmp_path / 'tokenizer.json'} has no eos token: expected one of </s>, <eos>, ")
    assert "level must be bpe, unigram, word, char, got 'bytes'" in complaint(train_tokenizer, cldr_texts(), "bytes")
    assert f"vocab_size must be {LEAST} or more for bpe, got {LEAST - 1}" in complaint(
        train_tokenizer, cldr_texts(), "bpe", LEAST - 1
    )
    assert "vocab_size must be 5 or more for word" in complaint(train_tokenizer, cldr_texts(), "word", 4)
    assert "no text" in complaint(train_tokenizer, iter(["", " "]), "unigram")
    trained["bpe"].require_vocab_size(trained["bpe"].vocab_size)
    assert "has 600 tokens, but the model's vocab_size is 8000" in complaint(trained["bpe"].require_vocab_size, 8000)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert 'tokenizers is not installed: pip install "zooproof[translation]"' in complaint(train_tokenizer, cldr_texts())


@pytest.mark.parametrize("level", ["bpe", "unigram"])
@pytest.mark.parametrize("texts", [["a"], ["ab"] * 3, ["日本"], ["x" * 5000]])
def test_tiny_and_odd_texts_suffice(level: str, texts: list[str]):
    tokenizer = train_tokenizer(texts, level, 300)
    assert tokenizer.decode(tokenizer.encode("Grüße, " + texts[0])) == "Grüße, " + texts[0]
