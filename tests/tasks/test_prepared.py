"""A prepared folder is as its data: what is measured on, how, for how long; and what is told of any data."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from command import one_line

from tasks.commands import parse
from tasks.data.parallel import LACKING, load_test
from tasks.translation import COMMANDS, TrainOptions, Translation, begin, main
from zoo import files

PAIRS = [("eins", "one"), ("zwei", "two"), ("drei", "three"), ("eins zwei", "one two"), ("zwei drei", "two three")]


def write(folder: Path, name: str, pairs: list[tuple[str, str]]) -> list[str]:
    paths = [folder / f"{name}.{language}" for language in ("de", "en")]
    for side, path in enumerate(paths):
        path.write_text("".join(f"{pair[side]}\n" for pair in pairs), encoding="utf-8")
    return [str(path) for path in paths]


def task(*words: object) -> Translation:
    """What `train` begins with."""
    return begin(TrainOptions(**parse("x", COMMANDS, ["train", *map(str, words)])[1]), Path("nowhere"))[0]


SPOKEN = {
    "train": {"tomato": ["T AH0", "T AA1"], "cat": ["K AE1 T"], "no": ["N OW1"]},
    "valid": {"act": ["AE1 K T", "AE1 K"], "zoo": ["Z UW1"]},
    "test": {"mat": ["M AE1 T"], "quiz": ["K W IH1 Z"]},
}
"""Held out are letters and phonemes that training has not seen."""


@pytest.fixture
def small_sets(monkeypatch):
    """Of the hub, of the CMU dictionary and of CLDR, each a few pairs."""
    rows = {"train": PAIRS, "dev": [("sieben  Ж", "seven"), *PAIRS], "test": [("acht", "eight  Ж")]}
    found = {
        split: [{"translation": dict(zip(("de", "en"), pair, strict=True))} for pair in pairs] for split, pairs in rows.items()
    }
    module = ModuleType("datasets")
    module.load_dataset = lambda name, config=None: found
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr("tasks.data.sources.pronunciations", SPOKEN.__getitem__)
    monkeypatch.setattr("tasks.data.sources.HELD_OUT_PAIRS", 20)


DATA = {
    "cldr": (["--pairs", "60"], "exact_match", 5, ["de", "en"]),
    "cmudict": (["--data", "cmudict"], "exact_match", 8, [None, None]),
    "hf:some/set/de-en": (["--data", "hf:some/set/de-en"], "bleu", 5, ["de", "en"]),
    "files": ([], "bleu", 5, ["de", "en"]),
}


@pytest.mark.parametrize("data", DATA)
def test_a_prepared_run_is_as_one_that_is_not(tmp_path, small_sets, data):
    """What is measured on, how, for how long: of words that the tokenizer does not know too, and of pairs that are skipped."""
    words, primary, epochs, languages = DATA[data]
    if data == "files":
        held = [("sieben  Ж", " se\u0301ven "), ("", "x"), ("eins " * 99, "x"), *PAIRS, *PAIRS]
        train, valid, test = (write(tmp_path, name, pairs) for name, pairs in (("a", PAIRS), ("b", held), ("c", held[::-1])))
        words = ["--train", *train, "--valid", *valid, "--test", *test]
    words = [*words, "--level", "word", "--max_length", "40"]
    assert main(["prepare", *words, "--out", str(tmp_path / "p")]) == 0
    plain, prepared = task(*words), task("--prepared", tmp_path / "p")
    assert any(plain.tokenizer.unk in plain.tokenizer.encode(source) for source in plain.data.valid.sources) or data == "cldr"
    for work in (plain, prepared):
        assert (work.primary.name, work.options.epochs) == (primary, epochs)
        assert [work.options.source, work.options.target] == languages
    assert prepared.options.data == data == (plain.options.data if data != "files" else data)
    one, other = plain.identity, prepared.identity
    assert {key: one[key] for key in one if key != "train"} == {key: other[key] for key in other if key != "train"}
    assert plain.data.test.references == prepared.data.test.references
    assert plain.told == prepared.told
    batches = [torch.cat([x.flatten() for x in work.train.batch(torch.arange(3), 0)]) for work in (plain, prepared)]
    assert torch.equal(*batches)


def test_a_prepared_run_of_words_spells_them(tmp_path, small_sets, capsys):
    """And measures phonemes; with --data as with another folder, it is refused."""
    assert main(["prepare", "--data", "cmudict", "--out", str(tmp_path / "p")]) == 0
    given = ["--prepared", str(tmp_path / "p"), "--runs_dir", str(tmp_path), "--name", "a", "--device", "cpu", "--epochs", "1"]
    assert main(["train", *given, "--max_length", "12"]) == 0, capsys.readouterr().err
    assert files.read_json(tmp_path / "a" / "options.json")["data"] == "cmudict"
    summary = files.read_json(tmp_path / "a" / "summary.json")
    capsys.readouterr()
    use = ["--runs_dir", str(tmp_path), "--name", "a"]
    assert main(["evaluate", *use]) == 0
    assert f"phoneme_error_rate {summary['test_phoneme_error_rate']:.4f}" in capsys.readouterr().out
    (tmp_path / "in").write_text("Tomatoes\n")
    error = one_line(capsys, main, "translate", *use, "--input", tmp_path / "in", "--max_length", 3)
    assert f"{tmp_path / 'in'}, line 1, 't o m a t o e s', has 8 tokens, at most 2 are allowed" in error
    error = one_line(capsys, main, "train", *given, "--name", "b", "--data", "hf:a/b")
    assert f"--data hf:a/b: {tmp_path / 'p'} was prepared from cmudict" in error


def test_a_folder_from_before_its_data_was_kept(tmp_path):
    """Was of files, unless --data says cmudict, as it had to."""
    given = ["--train", *write(tmp_path, "train", PAIRS), "--valid", *write(tmp_path, "valid", PAIRS)]
    assert main(["prepare", *given, "--out", str(tmp_path / "p")]) == 0
    meta = files.read_json(tmp_path / "p" / "meta.json")
    assert meta.pop("data") == "files"
    files.write_json(tmp_path / "p" / "meta.json", meta)
    for more, data, primary, epochs in (([], "files", "bleu", 5), (["--data", "cmudict"], "cmudict", "exact_match", 8)):
        work = task("--prepared", tmp_path / "p", *more)
        assert (work.options.data, work.primary.name, work.options.epochs) == (data, primary, epochs)


@pytest.mark.parametrize("given", [["valid"], ["test"], ["valid", "test"]])
@pytest.mark.parametrize("kind", ["files", "folder", "hub", "prepared"])
def test_where_one_split_serves_as_both_that_is_told(tmp_path, monkeypatch, capsys, kind, given):
    """Whatever the data comes from; and evaluate measures on the same."""
    for name in ("train", *given):
        write(tmp_path, name, PAIRS)
    files_of = {f"--{name}": [str(tmp_path / f"{name}.{side}") for side in ("de", "en")] for name in ("train", *given)}
    words = [word for name, paths in files_of.items() for word in (name, *paths)]
    if kind == "folder":
        words = ["--dataset_path", str(tmp_path), "--source", "de", "--target", "en"]
    if kind == "hub":
        rows = [{"de": a, "en": b} for a, b in PAIRS]
        module = ModuleType("datasets")
        module.load_dataset = lambda name, config=None: dict.fromkeys(("train", *given), rows)
        monkeypatch.setitem(sys.modules, "datasets", module)
        words = ["--data", "hf:a/b/de-en"]
    if kind == "prepared":
        assert main(["prepare", *words, "--out", str(tmp_path / "p")]) == 0
        words = ["--prepared", str(tmp_path / "p")]
    work = task(*words)
    lacking = [LACKING[split] for split in ("valid", "test") if split not in given]
    assert [line for line in work.told if "none given" in line] == lacking
    assert work.data.valid.pairs() == PAIRS
    notes = {}
    assert load_test(work.options, work.tokenizer, notes).pairs() == PAIRS
    assert [*notes.values()] == [line for line in lacking if line.startswith("test")]


def test_nothing_held_out_is_known_first(tmp_path, capsys):
    for command in ("train", "prepare"):
        error = one_line(capsys, main, command, "--train", *write(tmp_path, "train", PAIRS))
        assert "there is nothing to validate on: give --valid" in error


def test_columns_left_out_are_told_by_every_command(tmp_path, capsys):
    """In one line for each file."""
    path = tmp_path / "a.tsv"
    path.write_text("".join(f"{a}\t{b}\tsomebody\n" for a, b in PAIRS))
    note, given = f"{path}, line 1: 3 columns, 1,2 are taken: --columns chooses others", ["--train", path, "--valid", path]
    run = ["--runs_dir", tmp_path, "--name", "a", "--device", "cpu"]
    for command in (["prepare", *given, "--out", tmp_path / "p"], ["train", *given, *run, "--epochs", 1, "--max_length", 20],
                    ["evaluate", *run], ["evaluate", *run, "--test", path]):  # fmt: skip
        assert main([str(word) for word in command]) == 0, capsys.readouterr().err
        told = capsys.readouterr()
        assert (told.err if command[0] == "evaluate" else told.out).count(f"{note}\n") == 1
    assert main([str(word) for word in ["evaluate", *run, "--columns", "1,2", "--test", path]]) == 0
    assert note not in capsys.readouterr().err
