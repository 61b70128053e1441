"""Prepared folders and batches: the same ids as in memory, whole or not at all, every example once, and every complaint."""

from __future__ import annotations

import json
import signal
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from command import complaint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.data import DataError, corpus
from tasks.data.batching import batches, collate, lengths_of
from tasks.data.corpus import FORMER, Corpus, held_out, prepare, prepared_tokenizers, tokenised, write_tokens
from tasks.data.parallel import Held
from tasks.data.text import Counts, read
from tasks.data.tokenizer import TextTokenizer, train_tokenizer

ROOT = Path(__file__).parents[2]
PAIRS = [(f"am {n}. März, {7 * n} €", f"on March {n}, €{7 * n}") for n in range(300)]


@pytest.fixture(scope="module")
def pieces() -> TextTokenizer:
    return train_tokenizer((text for row in PAIRS for text in row), "bpe", 500)


@pytest.fixture(scope="module")
def words() -> TextTokenizer:
    return train_tokenizer((target for _, target in PAIRS), "word", 5000)


# ----------------------------------------------------------------------------------------------------------- prepared folders


@pytest.mark.parametrize("chunk", [1, 7, 299, 300, 4096])
def test_a_prepared_folder_holds_what_was_tokenised(
    pieces: TextTokenizer, words: TextTokenizer, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(corpus, "CHUNK", chunk)
    counts = prepare(tmp_path / "new" / "data", {"train": iter(PAIRS), "test": PAIRS[:9]}, pieces, words)
    assert counts == {"train": Counts(300), "test": Counts(9)}
    train = Corpus(tmp_path / "new" / "data")
    expected = [(pieces.encode(source), words.encode(target)) for source, target in PAIRS]
    assert [tuple(side.tolist() for side in train[n]) for n in range(len(train))] == expected
    assert [tuple(map(list, example)) for example in train] == expected  # a sequence, which ends
    assert list(held_out(tmp_path / "new" / "data", "test")) == PAIRS[:9]
    assert torch.equal(train.lengths, lengths_of(expected))
    assert train.lengths[:, 0].tolist() == [len(source) + 1 for source, _ in expected]
    mapped, listed = collate([train[n] for n in (5, 2)], pieces), collate([expected[5], expected[2]], pieces)
    assert all(torch.equal(a, b) for a, b in zip(mapped, listed, strict=True))
    again = prepared_tokenizers(tmp_path / "new" / "data")
    assert [t.fingerprint for t in again] == [pieces.fingerprint, words.fingerprint]
    with pytest.raises(IndexError):
        train[300]


def test_ids_take_four_bytes_only_where_two_are_too_few(pieces: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prepare(tmp_path / "small", {"train": PAIRS}, pieces, pieces)
    assert Corpus(tmp_path / "small").tokens[0].dtype == np.uint16
    monkeypatch.setattr(pieces, "vocab_size", 2**16)
    assert corpus.token_type(pieces) == np.uint16  # ids up to 65,535
    monkeypatch.setattr(pieces, "vocab_size", 2**16 + 1)
    prepare(tmp_path / "large", {"train": PAIRS}, pieces, pieces)
    assert Corpus(tmp_path / "large").tokens[0].dtype == np.uint32
    small, large = Corpus(tmp_path / "small"), Corpus(tmp_path / "large")
    assert all(np.array_equal(small[n][side], large[n][side]) for n in range(300) for side in (0, 1))


def test_what_is_skipped_is_counted(words: TextTokenizer, tmp_path: Path):
    pairs = [("a b c", "a"), ("", "a"), ("a b c d", "a"), ("a", "a b c d e"), ("a", " "), ("a", "a b c")]
    counts = prepare(tmp_path / "data", {"train": pairs}, words, words, 4)
    assert counts["train"] == Counts(kept=2, empty=2, long=2)  # three words and </s> are the most
    assert Corpus(tmp_path / "data").counts == counts["train"]
    assert int(Corpus(tmp_path / "data").lengths.max()) == 4
    mine = Counts()
    assert len(list(tokenised(pairs, words, words, 4, mine))) == 2
    assert mine == counts["train"]


def test_a_failed_prepare_leaves_nothing(pieces: TextTokenizer, tmp_path: Path):
    (tmp_path / "good").write_bytes(b"a\n" * 50)
    (tmp_path / "bad").write_bytes(b"a\n" * 49 + b"\xff\n")
    with pytest.raises(DataError, match="line 50"):
        prepare(tmp_path / "data", {"train": read([tmp_path / "good", tmp_path / "bad"])}, pieces, pieces)
    message = complaint(prepare, tmp_path / "data", {"train": PAIRS, "test": [("", "a")]}, pieces, pieces)
    assert message == "no pairs are left for test: 0 pairs; skipped 1 with an empty side and 0 over-long ones"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "good"]


LONG = st.sampled_from(["a b c", "a b c d", "a\n\u2028b"])
WILD = st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), LONG)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(WILD, WILD), max_size=6), form=st.sampled_from(["none", "nfc", "nfkc"]))
def test_held_out_texts_are_those_that_were_given(words: TextTokenizer, pairs: list[tuple[str, str]], form: str):
    """But for cleaning, whatever the tokenizer does not know; those that are empty or too long are as few as in memory."""
    expected = Held.of(pairs, lambda pair: max(len(words.encode(text)) for text in pair) < 4, form=form)
    with tempfile.TemporaryDirectory() as place:
        splits = {"train": [("a", "a")], "valid": [*pairs, ("Ж Ω", "Ж")]}
        folder = Path(place) / "data"
        counts = prepare(folder, splits, words, words, 4, form)["valid"]
        found = Held.of(held_out(folder, "valid"))
    assert (found.sources[:-1], found.references[:-1]) == (expected.sources, expected.references)
    assert counts == Counts(expected.counts.kept + 1, expected.counts.empty, expected.counts.long)


def as_before(folder: Path, splits: dict[str, list[tuple[str, str]]]) -> None:
    """Make the folder one of the former form: held-out splits as tokens."""
    tokenizers = prepared_tokenizers(folder)
    for split, pairs in splits.items():
        examples = (tuple(side.encode(text) for side, text in zip(tokenizers, pair, strict=True)) for pair in pairs)
        list(write_tokens(folder / split, examples, tokenizers))
        (folder / f"{split}.jsonl").unlink()
    meta = json.loads((folder / "meta.json").read_text())
    for counts in meta["splits"].values():
        counts.pop("longest")
        counts.pop("where")
    (folder / "meta.json").write_text(json.dumps(meta | {"format": FORMER}))


def test_folders_of_the_former_form(pieces: TextTokenizer, words: TextTokenizer, tmp_path: Path):
    """Are read on, unless their tokens do not tell the texts."""
    for n, (source, target) in enumerate([(pieces, pieces), (pieces, words), (words, pieces)]):
        folder = tmp_path / str(n)
        splits = {"train": PAIRS, "valid": PAIRS[:20]}
        prepare(folder, splits, source, target)
        as_before(folder, {"valid": PAIRS[:20]})
        assert len(Corpus(folder)) == 300
        if source is words:  # German ones, and they are English
            message = complaint(held_out, folder, "valid")
            assert message.startswith(f"{folder} is of an older version, which kept no texts to measure on")
            assert message.endswith("some words are unknown to its tokenizer; prepare it again")
        else:
            spaced = [(a, b) if target is pieces else (a, " ".join(b.split())) for a, b in PAIRS[:20]]
            assert list(held_out(folder, "valid")) == spaced


@pytest.mark.processes
@pytest.mark.parametrize("place", ["middle", "before meta", "before the rename"])
def test_a_killed_prepare_looks_unfinished_and_the_next_one_sweeps_up(
    pieces: TextTokenizer, place: str, tmp_path: Path, launch: Callable
):
    folder = tmp_path / "data"
    done = launch(place, folder, task="killed_prepare")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not folder.exists()
    assert len(list(tmp_path.iterdir())) == 1  # or it was killed too early to tell
    assert f"{folder} is no prepared folder" in complaint(Corpus, folder)
    prepare(folder, {"train": PAIRS}, pieces, pieces)
    assert list(tmp_path.iterdir()) == [folder]
    assert len(Corpus(folder)) == 300


class Line(str):
    """A string that can be watched."""


class Ids(list):
    """Token ids that can be watched."""


def test_a_corpus_larger_than_memory(words: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """However long the corpus is, only the lines and ids of a few chunks exist at any time; and it is read by mapping it."""
    monkeypatch.setattr(corpus, "CHUNK", 10)
    alive = most = 0

    def watched(thing: Any) -> Any:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        weakref.finalize(thing, gone)
        return thing

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def pairs() -> Iterator[tuple[str, str]]:
        for n in range(1000):
            yield watched(Line(f"{n} Tage")), watched(Line(f"{n} days"))

    encode = words.encode_batch
    monkeypatch.setattr(words, "encode_batch", lambda texts: [watched(Ids(ids)) for ids in encode(texts)])
    prepare(tmp_path / "data", {"train": pairs()}, words, words)
    assert 4 * 10 <= most <= 3 * 4 * 10  # lines and ids of both sides, of a few chunks
    train = Corpus(tmp_path / "data")
    assert len(train) == 1000
    assert all(isinstance(array, np.memmap) and isinstance(array[:2], np.memmap) for array in (*train.tokens, *train.offsets))


def test_complaints(pieces: TextTokenizer, tmp_path: Path):
    folder = tmp_path / "data"
    prepare(folder, {"train": PAIRS}, pieces, pieces)
    assert f"{folder} exists already" in complaint(prepare, folder, {"train": PAIRS}, pieces, pieces)
    assert complaint(Corpus, folder, "dev") == f"{folder} has no split dev, only train"
    for name, part in (("train.source.tokens", 10), ("train.target.offsets", 8)):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-part])
        assert f"{folder / name} is missing or truncated: expected {len(content)} bytes" in complaint(Corpus, folder)
        (folder / name).unlink()
        assert f"{folder / name} is missing or truncated" in complaint(Corpus, folder)
        (folder / name).write_bytes(content)
    prepare(tmp_path / "held", {"train": PAIRS, "valid": PAIRS[:3]}, pieces, pieces)
    path = tmp_path / "held" / "valid.jsonl"
    content = path.read_text().splitlines(keepends=True)
    path.write_text("".join(content[:2]))
    assert complaint(held_out, tmp_path / "held", "valid") == f"{path} is missing or truncated: expected 3 pairs, got 2"
    path.write_text("".join(content)[:-5])
    assert complaint(held_out, tmp_path / "held", "valid").startswith(f"{path}, line 3: not JSON")
    path.unlink()
    assert "expected 3 pairs, got 0" in complaint(held_out, tmp_path / "held", "valid")
    assert complaint(held_out, tmp_path / "held", "test") == f"{tmp_path / 'held'} has no split test, only train, valid"
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"format": "later"}))
    assert "its format is 'later'" in complaint(Corpus, folder)
    (tmp_path / "file").write_text("")
    assert "exists already" in complaint(prepare, tmp_path / "file", {"train": PAIRS}, pieces, pieces)


# ------------------------------------------------------------------------------------------------------------------- batches


def sizes() -> st.SearchStrategy[torch.Tensor]:
    rows = st.integers(1, 2).flatmap(
        lambda sides: st.lists(st.lists(st.integers(1, 20), min_size=sides, max_size=sides), max_size=60)
    )
    return rows.map(lambda rows: torch.tensor(rows, dtype=torch.int64).reshape(len(rows), -1 if rows else 2))


@given(
    lengths=sizes(),
    max_tokens=st.integers(20, 90),
    seed=st.integers(0, 3),
    window=st.sampled_from([1, 7, 100]),
    max_rows=st.sampled_from([None, 1, 3]),
)
def test_every_example_is_in_one_batch_that_fits(
    lengths: torch.Tensor, max_tokens: int, seed: int, window: int, max_rows: int | None
):
    found = batches(lengths, max_tokens, seed, 0, window, max_rows)
    assert sorted(index for batch in found for index in batch.tolist()) == list(range(len(lengths)))
    assert all(len(batch) * int(lengths[batch].max()) <= max_tokens for batch in found)
    assert all(0 < len(batch) <= (max_rows or len(batch)) for batch in found)
    again = batches(lengths, max_tokens, seed, 0, window, max_rows)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.fixture(scope="module")
def many() -> torch.Tensor:
    return torch.randint(2, 60, (5000, 2), generator=torch.Generator().manual_seed(0))


def test_epochs_and_seeds_differ(many: torch.Tensor):
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        return tuple(torch.cat(batches(many, 1000, seed, epoch)).tolist())

    torch.manual_seed(5)
    assert order(0, 0) == order(0, 0)
    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


def test_batches_are_full_and_in_random_order(many: torch.Tensor):
    found = batches(many[:, 0], 1000, 0, 0)
    padded = sum(len(batch) * int(many[batch, 0].max()) for batch in found)
    assert int(many[:, 0].sum()) > 0.97 * padded  # like lengths together
    assert padded > 0.9 * 1000 * len(found)
    longest = torch.tensor([int(many[batch, 0].max()) for batch in found]).float()
    neighbours = torch.corrcoef(torch.stack([longest[1:], longest[:-1]]))[0, 1]
    assert abs(neighbours) < 0.3
    both = batches(many, 1000, 0, 0)
    assert int(many.sum()) > 0.7 * sum(batch.numel() * int(many[batch, side].max()) for batch in both for side in (0, 1))


def test_windows_mix_neighbours(many: torch.Tensor):
    """Who shares a batch is drawn anew in every epoch, also among equal lengths."""
    same = torch.full((1000,), 5)
    first, second = ({frozenset(batch.tolist()) for batch in batches(same, 50, 0, epoch)} for epoch in (0, 1))
    assert not first & second
    assert len(first) == 100


def test_an_example_longer_than_a_batch_is_named():
    lengths = torch.tensor([[3, 4], [2, 11], [12, 1]])
    assert complaint(batches, lengths, 10, 0, 0) == "example 2 has 12 tokens, more than the 10 of a whole batch"
    assert len(batches(lengths, 12, 0, 0)) > 1
    assert batches(torch.zeros(0, 2, dtype=torch.int64), 10, 0, 0) == []


@pytest.mark.parametrize("kind", [list, np.array])
def test_collation_pads_on_the_right(kind: Callable):
    special = SimpleNamespace(pad=90, bos=91, eos=92)
    source, target_in, target_out = collate([(kind([5, 6]), kind([7, 8, 9])), (kind([5, 6, 7, 8]), kind([10]))], special)
    assert source.tolist() == [[5, 6, 92, 90, 90], [5, 6, 7, 8, 92]]
    assert target_in.tolist() == [[91, 7, 8, 9], [91, 10, 90, 90]]
    assert target_out.tolist() == [[7, 8, 9, 92], [10, 92, 90, 90]]
    assert {x.dtype for x in (source, target_in, target_out)} == {torch.int64}


def test_no_examples_are_a_batch_of_none(pieces: TextTokenizer):
    assert [tuple(x.shape) for x in collate([], pieces)] == [(0, 1)] * 3
    assert lengths_of([]).shape == (0, 2)


def endless() -> Iterator[tuple[str, str]]:
    number = 0
    while True:
        yield f"{number}", "x"
        number += 1


def test_tokenising_is_lazy(pieces: TextTokenizer):
    found = tokenised(endless(), pieces, pieces, 99, Counts())
    for text in ("0", "1"):
        pair, (source, _) = next(found)
        assert pair == (text, "x")
        assert pieces.decode(source) == text
