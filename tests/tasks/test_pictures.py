"""Pictures in folders: how they are loaded, split and kept, and every complaint.

`test_folders` is about finding them, `test_picture_files` about each one.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import command
import pytest
import torch
from PIL import Image

from tasks.data import pictures
from tasks.data.images import load_images, load_test, read_pictures
from tasks.data.pictures import OnDisk, load_folder, reorder
from tasks.options import UserError
from zoo.pretrained.preprocess import Preprocess

NOWHERE = Path("nowhere")
complaint = partial(command.complaint, load_images)
"""The message of the DataError that `load_images` raises."""


def write_levels(folder: Path, counts: dict[str, int], start: int = 0) -> Path:
    """`folder/CLASS/N.png`, 4x4, every image of a colour of its own: (start + number of the image, 100, label)."""
    number = start
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for n in range(count):
            Image.new("RGB", (4, 4), (number, 100, label)).save(folder / name / f"{n:02}.png")
            number += 1
    return folder


def test_train_and_test_folders(tmp_path):
    write_levels(tmp_path / "train", {"ant": 2, "bee": 3})
    write_levels(tmp_path / "test", {"ant": 1, "bee": 2}, start=200)
    data = load_images(f"folder:{tmp_path}", NOWHERE, image_size=4)
    assert data.classes == ["ant", "bee"]
    assert data.train.pixels.shape == (5, 3, 4, 4)
    assert data.train.pixels[:, :, 1, 2].tolist() == [[n, 100, label] for n, label in enumerate([0, 0, 1, 1, 1])]
    assert data.test.pixels[:, 0, 0, 0].tolist() == [200, 201, 202]
    assert data.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert data.test.labels.tolist() == [0, 1, 1]
    assert data.train.mean.tolist() == pytest.approx([2 / 255, 100 / 255, 0.6 / 255]), "not that of the training images"


@pytest.mark.parametrize(("held", "missing"), [("val", "test"), ("test", "validation")])
def test_one_of_val_and_test_serves_as_both(tmp_path, held, missing):
    write_levels(tmp_path / "train", {"ant": 2, "bee": 3})
    write_levels(tmp_path / held, {"ant": 1, "bee": 2}, start=200)
    data = load_images(f"folder:{tmp_path}", NOWHERE, image_size=4)
    assert data.valid is data.test
    assert data.test.pixels[:, 0, 0, 0].tolist() == [200, 201, 202]
    assert any(line.startswith(f"there is no {missing} split") for line in data.told)


def test_three_splits_are_three(tmp_path):
    for start, name in ((0, "train"), (100, "val"), (200, "test")):
        write_levels(tmp_path / name, {"ant": 2, "bee": 1}, start=start)
    data = load_images(f"folder:{tmp_path}", NOWHERE, image_size=4)
    assert [split.pixels[0, 0, 0, 0].item() for split in data.splits.values()] == [0, 100, 200]
    assert not any("there is no" in line for line in data.told)


@pytest.mark.parametrize("inside", [".", "train"])
def test_one_folder_is_split_by_what_the_pictures_are(tmp_path, inside):
    """Of every class a tenth for valid and for test, wherever the folder is and whatever its files are called."""
    root = write_levels(tmp_path / "a" / inside, {"ant": 20, "bee": 10})
    data = load_images(f"folder:{tmp_path / 'a'}", NOWHERE, image_size=4)
    assert [split.labels.bincount().tolist() for split in data.splits.values()] == [[16, 8], [2, 1], [2, 1]]
    parts = {role: split.pixels[:, 0, 0, 0].tolist() for role, split in data.splits.items()}
    assert sorted(level for levels in parts.values() for level in levels) == list(range(30))
    for split in data.splits.values():
        assert torch.equal(split.pixels[:, 2, 0, 0].long(), split.labels)
    assert any("24 train, 3 valid, 3 test" in line for line in data.told)
    moved = tmp_path / "b" / inside
    for n, path in enumerate(sorted(root.rglob("*.png"), reverse=True)):
        (moved / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, moved / path.parent.name / f"{n:03}.png")
    again = load_images(f"folder:{tmp_path / 'b'}", NOWHERE, image_size=4)
    assert {role: sorted(split.pixels[:, 0, 0, 0].tolist()) for role, split in again.splits.items()} == {
        role: sorted(levels) for role, levels in parts.items()
    }


def test_copies_stay_in_one_split(tmp_path):
    write_levels(tmp_path, {"ant": 20, "bee": 10})
    for path in sorted(tmp_path.rglob("*.png"))[::2]:
        shutil.copy(path, path.with_name(f"copy{path.name}"))
    data = load_images(f"folder:{tmp_path}", NOWHERE, image_size=4)
    levels = [{*split.pixels[:, 0, 0, 0].tolist()} for split in data.splits.values()]
    assert sum(map(len, levels)) == 30
    assert not any("two splits" in line for line in data.told)


def test_copies_in_two_splits_are_told(tmp_path):
    write_levels(tmp_path / "train", {"ant": 3, "bee": 3})
    write_levels(tmp_path / "test", {"ant": 2, "bee": 1}, start=100)
    shutil.copy(tmp_path / "train" / "ant" / "01.png", tmp_path / "test" / "ant" / "again.png")
    data = load_images(f"folder:{tmp_path}", NOWHERE, image_size=4)
    assert f"2 pictures stand in two splits as copies, such as {tmp_path / 'test' / 'ant' / 'again.png'}" in data.told[-1]
    assert [len(split) for split in data.splits.values()] == [6, 4, 4]


def test_a_folder_is_loaded_without_a_run(tmp_path):
    write_levels(tmp_path / "train", {"ant": 2, "bee": 3})
    write_levels(tmp_path / "test", {"ant": 1, "bee": 2}, start=200)
    (tmp_path / "train" / "ant" / "00.png").write_bytes(b"no picture")
    train, test, classes, augment = load_folder(tmp_path, 4, True, skipped := [])
    assert [x.shape for x in (*train, *test)] == [(4, 3, 4, 4), (4,), (3, 3, 4, 4), (3,)]
    assert train[0][:, 0, 0, 0].tolist() == [1, 2, 3, 4]
    assert (classes, augment, len(skipped)) == (["ant", "bee"], "flip", 1)


@pytest.mark.parametrize("layout", [["train", "test"], ["train", "val"], ["train", "val", "test"], ["train"], ["."]])
@pytest.mark.parametrize("bad", ["", "train", "test"])
def test_the_test_split_alone_is_that_of_training(tmp_path, monkeypatch, layout, bad):
    """To the fingerprint, copies and unreadable pictures included, and no other picture is decoded for it.

    With --skip_bad a folder without splits is an exception.
    """
    for start, inside in enumerate(layout):
        root = write_levels(tmp_path / inside, {"ant": 9, "bee": 12}, start=100 * start)
        shutil.copy(root / "ant" / "02.png", root / "ant" / "copy.png")
    data = load_images(source := f"folder:{tmp_path}", NOWHERE, image_size=4)
    if bad:
        Path(data.splits[bad].names[1]).write_bytes(b"no picture")
        data = load_images(source, NOWHERE, image_size=4, skip_bad=True)
    read, decoded = pictures.read_pixels, []
    monkeypatch.setattr(pictures, "read_pixels", lambda path, *rest: decoded.append(path) or read(path, *rest))
    test, classes, told = load_test(source, NOWHERE, data.preprocess(), data.classes, bool(bad), own=True)
    assert (test.fingerprint, [*test.names], classes) == (data.test.fingerprint, data.test.names, data.classes)
    assert torch.equal(test.pixels, data.test.pixels)
    assert torch.equal(test.labels, data.test.labels)
    whole = bool(bad) and len(layout) == 1
    unread = {path for split in data.splits.values() for path in split.names if path not in test.names}
    assert {*decoded} >= {*test.names}
    assert {*decoded}.isdisjoint(unread) != whole
    assert ("1 unreadable pictures skipped" in told) == (whole or bad == "test")
    assert [line for line in data.told if "is split by" in line] == [line for line in told if "is split by" in line]


def test_folders_default_to_224(tmp_path):
    write_levels(tmp_path / "train", {"ant": 1, "bee": 1})
    write_levels(tmp_path / "test", {"ant": 1, "bee": 1})
    assert load_images(f"folder:{tmp_path}", NOWHERE).train.pixels.shape == (2, 3, 224, 224)


def test_a_prediction_sees_what_training_saw(make_pictures, tmp_path):
    """`read_pictures` and what the run keeps in config.json, against the test split's own batch."""
    make_pictures(tmp_path / "train", {"dark": 3, "light": 3})
    make_pictures(tmp_path / "test", {"dark": 2, "light": 1}, seed=1)
    data = load_images(f"folder:{tmp_path}", NOWHERE, image_size=20)
    paths = sorted((tmp_path / "test").rglob("*.png"))
    preprocess = Preprocess.of(json.loads(json.dumps(data.preprocess().config())))
    pixels = read_pictures(paths, preprocess)
    assert torch.equal(pixels, data.test.pixels)
    images = preprocess.normalise(pixels)
    torch.testing.assert_close(images, data.test.batch(torch.arange(3))[0], rtol=0, atol=1e-6)


def test_an_evaluation_sees_what_a_prediction_sees(make_pictures, tmp_path):
    """Where weights of others resize before they cut."""
    make_pictures(tmp_path / "train", {"dark": 1, "light": 1})
    make_pictures(tmp_path / "test", {"dark": 2, "light": 1}, seed=1)
    published = Preprocess(20, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), resize=26)
    test, classes, _ = load_test(f"folder:{tmp_path}", NOWHERE, published, ["dark", "light"])
    pixels = read_pictures(sorted((tmp_path / "test").rglob("*.png")), published)
    assert classes == ["dark", "light"]
    assert torch.equal(test.pixels, pixels)
    assert not torch.equal(pixels, load_images(f"folder:{tmp_path}", NOWHERE, image_size=20).test.pixels)
    assert torch.equal(test.batch(torch.arange(3))[0], published.normalise(pixels))


def test_a_folder_without_its_prefix_is_told(tmp_path):
    assert complaint(str(tmp_path), NOWHERE).endswith(f"did you mean 'folder:{tmp_path}'?")


def test_an_unknown_source_is_told_the_nearest():
    for wrong, meant in (("digit", "'digits'"), ("cifar_10", "'cifar10'"), ("fashionmnist", "'fashion_mnist'")):
        message = complaint(wrong, NOWHERE)
        assert f"did you mean {meant}" in message
        assert "folder:PATH" in message
    for wrong in ("xyz", "folder:", ""):
        assert complaint(wrong, NOWHERE).endswith(f"or folder:PATH, got {wrong!r}")


@pytest.mark.parametrize("size", [10**5, 10**9, 10**18])
def test_an_image_size_beyond_any_memory_is_refused(tmp_path, size):
    write_levels(tmp_path, {"ant": 3, "bee": 3})
    assert "give a smaller --image_size" in complaint(f"folder:{tmp_path}", NOWHERE, image_size=size)
    assert "give a smaller --image_size" in complaint("digits", NOWHERE, image_size=size)
    reader = Preprocess(size, (0.5,) * 3, (0.5,) * 3)
    assert "give a smaller --image_size" in command.complaint(load_test, f"folder:{tmp_path}", NOWHERE, reader, ["ant", "bee"])


def test_folders_that_are_none_or_empty(tmp_path):
    assert str(tmp_path / "gone") in complaint(f"folder:{tmp_path / 'gone'}", NOWHERE)
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in complaint(f"folder:{tmp_path / 'file'}", NOWHERE)
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} is empty" in complaint(f"folder:{tmp_path / 'empty'}", NOWHERE)
    (tmp_path / "half" / "train").mkdir(parents=True)
    (tmp_path / "half" / "test").mkdir()
    assert f"{tmp_path / 'half' / 'train'} is empty" in complaint(f"folder:{tmp_path / 'half'}", NOWHERE)


def test_a_class_without_images_is_named(tmp_path):
    write_levels(tmp_path, {"ant": 6, "bee": 0})
    (tmp_path / "bee" / "notes.txt").write_text("no image")
    assert f"{tmp_path / 'bee'} is a class folder without images" in complaint(f"folder:{tmp_path}", NOWHERE)


def test_too_few_images_to_split(tmp_path):
    write_levels(tmp_path, {"ant": 1, "bee": 9})
    message = complaint(f"folder:{tmp_path}", NOWHERE, image_size=4)
    assert str(tmp_path) in message
    assert "ant 1, bee 9" in message


def test_one_class_is_refused(tmp_path):
    write_levels(tmp_path, {"ant": 9})
    assert "has one class, ant: two or more are needed to train" in complaint(f"folder:{tmp_path}", NOWHERE, image_size=4)


def test_no_train_is_refused(tmp_path):
    write_levels(tmp_path / "val", {"ant": 9, "bee": 9})
    write_levels(tmp_path / "test", {"ant": 9, "bee": 9})
    assert "has valid and test but no folder named train" in complaint(f"folder:{tmp_path}", NOWHERE, image_size=4)


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_what_is_too_large_for_memory_is_read_from_disk_alike(make_pictures, tmp_path, monkeypatch, flat, bad):
    """Splits, moments, names, identity and batches of both are equal to the bit, and no file is decoded twice before training."""
    for seed, name in enumerate(("train", "test")) if not flat else [(0, "")]:
        make_pictures(tmp_path / name, {"dark": 9, "light": 8}, seed=seed)
    if bad:
        for path in sorted(tmp_path.rglob("*.png"))[::5]:
            path.write_bytes(path.read_bytes()[:200])
    kept = load_images(f"folder:{tmp_path}", NOWHERE, 16, bad, room=10**9)
    opened, real = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path, **named: opened.append(path) or real(path, **named))
    streamed = load_images(f"folder:{tmp_path}", NOWHERE, 16, bad, room=17 * 3 * 16 * 16 - 1)
    assert len(opened) == len({*opened}) == len([*tmp_path.rglob("*.png")])
    assert isinstance(streamed.train.pixels, OnDisk)
    assert [*streamed.told[:-1]] == kept.told
    assert re.search(
        r"pictures of 16x16 pixels would take .* GiB of memory, more than half: they are read from disk", streamed.told[-1]
    )
    assert (streamed.identity(), streamed.preprocess(), streamed.skipped) == (kept.identity(), kept.preprocess(), kept.skipped)
    assert len(kept.skipped) == (0 if not bad else len(opened[::5]))
    for one, other in zip(streamed.splits.values(), kept.splits.values(), strict=True):
        assert one.names == other.names
        assert one.pixels.shape == other.pixels.shape
        for indices in (torch.arange(len(one)), torch.tensor([1, 0, 1]), torch.tensor([0])):
            assert all(torch.equal(a, b) for a, b in zip(one.batch(indices), other.batch(indices), strict=True))
        assert torch.equal(one.pixels[0], other.pixels[0])


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_put_in_order_where_they_are(seed):
    draw = torch.Generator().manual_seed(seed)
    rows, order = torch.randint(0, 256, (30, 2, 3), generator=draw), torch.randperm(30, generator=draw)
    expected, place = rows[order], rows.data_ptr()
    reorder(rows, order.tolist())
    assert torch.equal(rows, expected)
    assert rows.data_ptr() == place


def test_unreadable_pictures_do_not_count_where_a_folder_is_split(tmp_path):
    """Whichever they are: the split is that of the folder without them."""
    write_levels(tmp_path / "a", {"ant": 10, "bee": 10})
    for n, path in enumerate(sorted((tmp_path / "a" / "ant").iterdir())):
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        shutil.copytree(tmp_path / "a", tmp_path / "c")
        (tmp_path / "b" / "ant" / path.name).write_bytes(b"")
        (tmp_path / "c" / "ant" / path.name).unlink()
        bad, without = (load_images(f"folder:{tmp_path / name}", NOWHERE, 4, skip_bad=True) for name in ("b", "c"))
        assert len(bad.skipped) == 1, n
        assert bad.identity() == without.identity()
        shutil.rmtree(tmp_path / "b")
        shutil.rmtree(tmp_path / "c")


def test_what_fits_into_memory_is_kept(tmp_path):
    write_levels(tmp_path, {"ant": 5, "bee": 5})
    assert isinstance(load_images(f"folder:{tmp_path}", NOWHERE, 4, room=10 * 3 * 16).train.pixels, torch.Tensor)
    assert isinstance(load_images(f"folder:{tmp_path}", NOWHERE, 4, room=10 * 3 * 16 - 1).train.pixels, OnDisk)


def test_data_is_known_by_its_contents(make_pictures, tmp_path):
    """The same elsewhere; another for other bytes, labels, classes or an exchanged pair of files."""
    make_pictures(tmp_path / "a" / "train", {"dark": 3, "light": 3})
    make_pictures(tmp_path / "a" / "test", {"dark": 2, "light": 2}, seed=1)

    def identity(name: str) -> dict:
        return load_images(f"folder:{tmp_path / name}", NOWHERE, image_size=4).identity()

    known = identity("a")
    assert known["classes"] == ["dark", "light"]
    assert [known[role]["images"] for role in ("train", "valid", "test")] == [6, 4, 4]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert identity("b") == known

    def exchange(one: Path, other: Path) -> None:
        content = one.read_bytes(), other.read_bytes()
        one.write_bytes(content[1])
        other.write_bytes(content[0])

    train = tmp_path / "b" / "train"
    exchange(train / "dark" / "00.png", train / "dark" / "01.png")
    assert [role for role in known if identity("b")[role] != known[role]] == ["train"]
    exchange(train / "dark" / "00.png", train / "dark" / "01.png")
    assert identity("b") == known
    (train / "light" / "00.png").rename(train / "dark" / "99.png")
    assert [role for role in known if identity("b")[role] != known[role]] == ["train"]


@pytest.fixture
def two_cut(tmp_path) -> tuple[Path, list[Path]]:
    write_levels(tmp_path / "train", {"ant": 4, "bee": 4})
    write_levels(tmp_path / "test", {"ant": 2, "bee": 2}, start=200)
    cut = [tmp_path / "train" / "ant" / "01.png", tmp_path / "train" / "bee" / "03.png"]
    for path in cut:
        path.write_bytes(path.read_bytes()[:50])
    return tmp_path, cut


def test_unreadable_images_are_found_before_training(two_cut):
    root, cut = two_cut
    message = complaint(f"folder:{root}", NOWHERE, image_size=4)
    assert message.startswith(str(cut[0]))
    assert "and 1 more" in message
    assert "--skip_bad" in message


def test_skip_bad_goes_on_and_lists_them(two_cut):
    root, cut = two_cut
    data = load_images(f"folder:{root}", NOWHERE, image_size=4, skip_bad=True)
    assert len(data.skipped) == 2
    assert all(str(path) in line for path, line in zip(cut, data.skipped, strict=True))
    assert data.train.pixels[:, 0, 0, 0].tolist() == [0, 2, 3, 4, 5, 6]
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(data.test) == 4


def test_skip_bad_does_not_lose_a_class(two_cut):
    root, _ = two_cut
    for path in (root / "test" / "bee").iterdir():
        path.write_bytes(b"")
    assert complaint(f"folder:{root}", NOWHERE, image_size=4, skip_bad=True).endswith("class bee")


def test_hidden_files_are_not_images(tmp_path):
    """macOS leaves ._NAME.png beside NAME.png on foreign disks."""
    write_levels(tmp_path / "train", {"ant": 1, "bee": 1})
    write_levels(tmp_path / "test", {"ant": 1, "bee": 1})
    (tmp_path / "train" / "ant" / "._00.png").write_bytes(b"\0\5\26\7")
    assert len(load_images(f"folder:{tmp_path}", NOWHERE, image_size=4).train) == 2


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_has_a_name_on_a_terminal(tmp_path, monkeypatch, capsys, terminal):
    write_levels(tmp_path, {"ant": 5, "bee": 5})
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    data = load_images(f"folder:{tmp_path}", NOWHERE, 4, room=0)
    said = capsys.readouterr().err
    assert (f"reading {tmp_path}: 100%" in said and "10/10" in said) == terminal
    data.train.batch(torch.arange(3))
    assert not capsys.readouterr().err, "a batch is no news"


def test_a_picture_that_is_gone_in_the_midst_of_training_is_named(tmp_path):
    write_levels(tmp_path, {"ant": 5, "bee": 5})
    train = load_images(f"folder:{tmp_path}", NOWHERE, 4, room=0).train
    Path(train.names[2]).unlink()
    train.batch(torch.arange(2))
    with pytest.raises(UserError, match=re.escape(train.names[2])):
        train.batch(torch.arange(4))


def test_fit_goes_from_training_into_the_model(tmp_path):
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (24, 8), (200, 200, 200)).save(tmp_path / split / name / "1.png")
    fits = {fit: load_images(f"folder:{tmp_path}", NOWHERE, 12, fit=fit) for fit in ("cut", "pad", "squash")}
    assert [data.train.pixels[0, 0].count_nonzero().item() for data in fits.values()] == [144, 48, 144]
    for fit, data in fits.items():
        config = json.loads(json.dumps(data.preprocess().config()))
        assert config["fit"] == fit
        assert torch.equal(read_pictures([tmp_path / "test" / "ant" / "1.png"], Preprocess.of(config))[0], data.test.pixels[0])
        del config["fit"]  # as older runs have it
        assert Preprocess.of(config) == replace(data.preprocess(), fit="cut")
