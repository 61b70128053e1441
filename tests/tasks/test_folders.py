"""What a folder is taken for: splits in any spelling, classes, what is left out, what is refused. No file holds a picture."""

from __future__ import annotations

import os
import unicodedata
from functools import partial
from pathlib import Path

import command
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.families import FAMILIES, role_of
from tasks.data.folders import list_classes
from tasks.data.splitting import split_80_10_10
from tasks.data.tree import scan

complaint = partial(command.complaint, list_classes)
"""The message of the DataError that `list_classes` raises."""
NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def plant(root: Path, *places: str) -> Path:
    """Empty files; "a/b/3" stands for three pictures in a/b, 1.png to 3.png."""
    for place in places:
        folder, _, name = place.rpartition("/")
        (root / folder).mkdir(parents=True, exist_ok=True)
        for file in [f"{n + 1}.png" for n in range(int(name))] if name.isdigit() else [name]:
            (root / folder / file).touch()
    return root


def found(root: Path) -> dict[str, dict[str, int]]:
    """Pictures of every class of every part."""
    return {role: {name: len(paths) for name, paths in part.classes.items()} for role, part in list_classes(root).parts.items()}


SPELLINGS = {
    "train": "train Train TRAIN training Training train_set training_set trainset training-set traindata train_data",
    "valid": "val Val VAL valid Valid validation Validation val_set validation_set dev Dev devset",
    "test": "test Test TEST testing Testing test_set testing_set testset test-set eval Eval testdata",
}
NONE = ["trains", "trained", "tester", "testudo", "contest", "value", "device", "evaluator", "set", "data", "dataset", "", "cat"]


def test_every_spelling_of_a_split_is_known():
    assert {role: {role_of(name) for name in names.split()} for role, names in SPELLINGS.items()} == {r: {r} for r in FAMILIES}
    assert [name for name in NONE if role_of(name)] == []


@pytest.mark.parametrize("held", ["valid", "test"])
@pytest.mark.parametrize("n", range(3))
def test_splits_of_any_spelling_are_found(tmp_path, held, n):
    names = [SPELLINGS[role].split()[n::3] for role in ("train", held)]
    for train, other in zip(*names, strict=False):
        root = plant(tmp_path / f"{train}-{other}", f"{train}/ant/2", f"{train}/bee/3", f"{other}/ant/1", f"{other}/bee/1")
        assert found(root) == {"train": {"ant": 2, "bee": 3}, held: {"ant": 1, "bee": 1}}
        assert list_classes(root).told == [
            f"{root}/{train}: train, 5 pictures of 2 classes; {root}/{other}: {held}, 2 pictures of 2 classes"
        ]


two = {"ant": 2, "bee": 2}
ALL = {"all": two}
LAYOUTS = {
    "flat": ("ant/2 bee/2", ALL, []),
    "three splits": (
        "train/ant/2 train/bee/2 val/ant/1 test/bee/1",
        {"train": two, "valid": {"ant": 1}, "test": {"bee": 1}},
        ["val has no pictures of bee", "test has no pictures of ant"],
    ),
    "a class called train": ("ant/2 train/2", {"all": {"ant": 2, "train": 2}}, []),
    "a class called test": ("test/2 bee/2", {"all": {"test": 2, "bee": 2}}, []),
    "a level too deep": (
        "PetImages/ant/2 PetImages/bee/2 PetImages/README notes.txt",
        ALL,
        ["PetImages is taken for the data", "left out: 1 file that is no picture by its name (README)"],
    ),
    "two levels too deep": ("a/b/ant/2 a/b/bee/2", ALL, ["a is taken for the data", "a/b is taken for the data"]),
    "a level too deep, with splits": (
        "a/Train/ant/2 a/Train/bee/2 a/val/ant/1 a/val/bee/1",
        {"train": two, "valid": {"ant": 1, "bee": 1}},
        ["a is taken for the data"],
    ),
    "test only": ("test/ant/2 test/bee/2", {"test": two}, []),
    "strays in splits": (
        "train/ant/4 train/bee/4 train/1 test/ant/2 test/bee/2 test/1",
        {"train": {"ant": 4, "bee": 4}, "test": two},
        ["train (1.png); 1 picture directly in"],
    ),
    "unlabelled test": (
        "train/ant/2 train/bee/2 test/3",
        {"train": two},
        ["test: 3 pictures without classes, not used; predict --image"],
    ),
    "an empty val": ("train/ant/2 val/a.txt test/ant/1", {"train": {"ant": 2}, "test": {"ant": 1}}, ["without pictures (val)"]),
    "hidden": ("ant/2 ant/.ipynb_checkpoints/2 bee/2 bee/._1.png .git/2 __MACOSX/ant/2 bee/deep/__MACOSX/2", ALL, []),
    "other files": (
        "ant/2 ant/a.txt ant/b.mp4 bee/2 bee/c bee/d.xml",
        ALL,
        ["left out: 4 files that are no pictures by their names (a.txt, b.mp4, c, ...)"],
    ),
    "pictures beside classes": ("ant/2 bee/2 2", ALL, ["2 pictures directly in"]),
    "folders in classes": ("ant/2 bee/x/1 bee/y/z/1", ALL, []),
    "a folder beside splits": ("train/ant/2 val/ant/1 xml/1.xml", {"train": {"ant": 2}, "valid": {"ant": 1}}, ["(xml)"]),
    "other suffixes": ("ant/1 ant/2.JPG bee/1.jfif bee/2.Jpe", ALL, []),
    "a folder called as a file": ("ant/2 ant/thumbs.png/.hidden bee/2", ALL, []),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, name):
    places, parts, told = LAYOUTS[name]
    root = plant(tmp_path, *places.split())
    assert found(root) == parts
    first, *lines = list_classes(root).told
    lines = [first, *lines] if "taken for" in first else lines
    assert all(any(word in line for line in lines) for word in told), lines
    counts = [line for line in lines if " pictures of " in line and "no pictures" not in line]
    assert len(lines) - len(counts) == len(told), "something is said that is not expected"


REFUSED = {
    "two of one family": ("train/ant/1 val/ant/1 valid/ant/1", ["two folders for valid, val and valid"]),
    "pictures beside splits": ("train/ant/1 test/ant/1 extra/ant/1", ["splits", "extra"]),
    "folders in a class called train": ("ant/1 bee/1 train/steam/1", ["splits train", "ant, bee"]),
    "classes of train and test": (
        "train/ant/1 train/bee/1 test/ant/1 test/cow/1",
        ["test has classes", "lacks: cow", "ant, bee"],
    ),
    "years": ("2019/ant/1 2019/bee/1 2020/ant/1 2020/bee/1", ["2019, 2020", "ant, bee", "PATH/train/CLASS"]),
    "no classes": ("3", ["3 pictures and no folders of classes"]),
    "splits without classes": ("train/3 test/2", ["has the splits", "train", "test", "without classes"]),
    "train without classes": ("train/3 test/ant/2", ["/train holds pictures without classes"]),
    "nothing": ("", ["is empty"]),
    "no pictures": ("ant/a.txt bee/b.txt", ["is empty", "2 files that are no pictures"]),
    "empty train": ("train/a.txt test/ant/1", ["train is empty"]),
    "a class without images": ("ant/2 bee/notes.txt", ["bee is a class folder without images", "notes.txt"]),
    "Unicode forms": (f"{NFC}/1 {NFD}/1 ant/1", ["café", "NFC", "NFD", "make them one"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_several_things_is_refused(tmp_path, name):
    places, words = REFUSED[name]
    message = complaint(plant(tmp_path, *places.split()))
    assert str(tmp_path) in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar.gz", "photos.TGZ", "photos.7z"])
def test_an_archive_is_to_be_unpacked(tmp_path, name):
    (tmp_path / name).touch()
    assert complaint(tmp_path / name) == f"{tmp_path / name} is an archive: unpack it, and give its folder"


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    plant(tmp_path / "photos", "ant/2", "bee/2")
    assert found(Path("~/photos")) == ALL


def test_a_split_as_the_root_is_told(tmp_path):
    plant(tmp_path, "Train/ant/2", "Train/bee/2", "val/ant/1", "notes/1.txt")
    told = list_classes(tmp_path / "Train").told
    assert told[-1].endswith(f"has the name of a split and is taken as a whole; to use val beside it, give folder:{tmp_path}")
    plant(tmp_path / "alone", "train/ant/2", "train/bee/2")
    assert len(list_classes(tmp_path / "alone" / "train").told) == 1


def test_class_names_are_one_form_of_unicode(tmp_path):
    """One system writes é as a letter, another as e and an accent."""
    root = plant(tmp_path, f"train/{NFC}/2", "train/ant/1", f"test/{NFD}/1")
    assert found(root) == {"train": {"ant": 1, NFC: 2}, "test": {NFC: 1}}


def test_names_that_are_no_utf8_can_be_printed(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    plant(tmp_path, "ant/1")
    (tmp_path / os.fsdecode(b"caf\xe9") / "1.png").touch()
    (tmp_path / "ant" / os.fsdecode(b"\xff.txt")).touch()
    layout = list_classes(tmp_path)
    assert [*layout.parts["all"].classes] == ["ant", r"caf\xe9"]
    assert r"(\xff.txt)" in layout.told[-1].encode().decode()


def test_links_are_followed(tmp_path):
    plant(tmp_path / "away", "ant/3", "more/2")
    root = plant(tmp_path / "data", "bee/1", "cow/1")
    os.symlink(tmp_path / "away" / "ant", root / "ant")
    os.symlink(tmp_path / "away" / "more", root / "bee" / "more")
    os.symlink(tmp_path / "away" / "more" / "1.png", root / "cow" / "link.png")
    assert found(root) == {"all": {"ant": 3, "bee": 3, "cow": 2}}


def test_links_in_circles_end_and_dangling_ones_are_told(tmp_path):
    root = plant(tmp_path, "ant/2", "bee/2")
    os.symlink(root, root / "bee" / "up")
    os.symlink(root / "ant", root / "bee" / "across")
    os.symlink(root / "bee", root / "ant" / "back")
    os.symlink(root / "gone.png", root / "ant" / "9.png")
    layout = list_classes(root)
    assert {name: len(paths) for name, paths in layout.parts["all"].classes.items()} == {"ant": 4, "bee": 4}
    assert "2 links that lead nowhere (9.png, 9.png)" in layout.told[-1]


def test_files_come_in_the_order_of_their_paths(tmp_path):
    plant(tmp_path, "b/2", "a/c/1", "a.png", "b.png", "ab/1")
    assert [*scan(str(tmp_path)).files()] == [str(path) for path in sorted(tmp_path.rglob("*.png"))]


KINDS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), min_size=30, max_size=120)


@given(KINDS, st.randoms(use_true_random=False))
def test_a_split_keeps_copies_together_and_hangs_on_contents_alone(pictures, draw):
    """Three classes with ten different pictures or more, of which any number are copies, also across classes."""
    pictures = [*((label, 100 + 10 * label + n) for label in range(3) for n in range(10)), *pictures]
    digests, labels = [bytes([n]) for _, n in pictures], [label for label, _ in pictures]
    roles = split_80_10_10(digests, labels, "abc", "x")
    by_digest = dict(zip(digests, roles, strict=True))
    assert [by_digest[digest] for digest in digests] == roles, "copies are in two splits"
    for label in range(3):
        own = [role for role, of in zip(roles, labels, strict=True) if of == label]
        assert {*own} == {"train", "valid", "test"}
    order = draw.sample(range(len(pictures)), len(pictures))
    again = split_80_10_10([digests[n] for n in order], [labels[n] for n in order], "abc", "x")
    if len({*zip(labels, digests, strict=True)}) == len(by_digest):  # no copy across classes, whose order decides
        assert again == [roles[n] for n in order]


@pytest.mark.parametrize(("count", "held"), [(3, 1), (14, 1), (16, 2), (50, 5), (1000, 100)])
def test_a_tenth_is_for_test_and_a_tenth_for_valid(count, held):
    roles = split_80_10_10([n.to_bytes(2, "big") for n in range(count)], [0] * count, "a", "x")
    assert [roles.count(role) for role in ("train", "valid", "test")] == [count - 2 * held, held, held]


def test_what_is_held_out_is_like_the_rest():
    """Not the first ones in the order of their bytes, which may be the darkest pictures."""
    roles = split_80_10_10([n.to_bytes(2, "big") for n in range(1000)], [0] * 1000, "a", "x")
    places = {role: [n for n, one in enumerate(roles) if one == role] for role in ("valid", "test")}
    assert all(400 < sum(found) / 100 < 600 and found[0] < 50 and found[-1] > 950 for found in places.values())


@pytest.mark.parametrize("copies", [[40, 1, 1], [1, 40, 1], [1, 1, 40], [5, 5, 5], [30, 30, 1, 1, 1]])
def test_many_copies_are_rather_learnt(copies):
    digests = [bytes([n]) for n, count in enumerate(copies) for _ in range(count)]
    roles = split_80_10_10(digests, [0] * len(digests), "a", "x")
    assert roles.count("train") >= max(copies)
    assert {*roles} == {"train", "valid", "test"}


def test_too_few_different_pictures_are_counted():
    message = command.complaint(split_80_10_10, [b"1", b"2", b"2", b"3", b"4", b"5"], [0, 0, 0, 1, 1, 1], ["ant", "bee"], "x")
    assert message == "x must have three different examples or more of each class to be split, got ant 2, bee 3: of 'ant' too few"
