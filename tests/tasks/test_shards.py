"""Pictures in tar shards: found, labelled, ordered, refused; a run on them is one on a folder, in parts too."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

import command
import pytest
import torch
from command import rows, small
from packing import pack, png, write

from tasks.data import DataError, shards
from tasks.data.images import load_images, load_test
from tasks.image_classification import main
from zoo import files
from zoo.pretrained.preprocess import Preprocess

NOWHERE = Path("nowhere")
complaint = partial(command.complaint, load_images)


@pytest.fixture(scope="session")
def packed(pictures, tmp_path_factory):
    """13 training pictures in 4 shards, 5 to test in 2."""
    return pack(pictures, tmp_path_factory.mktemp("packed"))


def test_pictures_and_classes_are_those_of_the_folder(packed, pictures):
    ours, theirs = load_images(f"shards:{packed}", NOWHERE, 8), load_images(f"folder:{pictures}", NOWHERE, 8)
    assert ours.classes == theirs.classes == ["dark", "light"]
    for role, split in ours.splits.items():
        other = theirs.splits[role]

        def content(one):
            return sorted((one.pixels[n].flatten().tolist(), int(one.labels[n])) for n in range(len(one)))

        assert content(split) == content(other)
    torch.testing.assert_close(ours.train.mean, theirs.train.mean)
    torch.testing.assert_close(ours.train.std, theirs.train.std)
    assert ours.train.names[0] == "train-000.tar/00000.png"
    assert ours.told[0].endswith("2 shards of test, 4 shards of train; mean and standard deviation are of 1,024 pictures at most")


def test_a_pattern_names_shards(packed):
    whole = load_images(f"shards:{packed}", NOWHERE, 8)
    pattern = f"shards:{packed}/{{train,test}}-{{000..001}}.tar"
    assert len(load_images(pattern, NOWHERE, 8).train) == 8
    held = load_images(f"shards:{packed}/train-{{000..003}}.tar", NOWHERE, 8)
    assert [len(split) for split in held.splits.values()] == [9, 2, 2]
    assert len({*held.train.names, *held.valid.names, *held.test.names}) == 13
    assert "split by the names of pictures: 9 train, 2 valid, 2 test" in held.told[1]
    assert held.identity() == load_images(f"shards:{packed}/train-{{000..003}}.tar", NOWHERE, 8).identity()
    assert whole.identity()["train"]["fingerprint"] != held.identity()["train"]["fingerprint"]


def test_the_order_keeps_to_few_shards_and_is_pure():
    shard = torch.arange(40).repeat_interleave(25)
    first = shards.order(shard, seed=3, epoch=4, window=60)
    assert sorted(first.tolist()) == list(range(1000))
    torch.manual_seed(1)
    assert torch.equal(first, shards.order(shard, seed=3, epoch=4, window=60))
    orders = {tuple(shards.order(shard, seed, epoch, 60).tolist()) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    at_once = [len(part.unique()) for part in shard[first].split(25)]
    assert max(at_once) <= 7, "60 places before or after, and 25 of its own"
    assert len(shard[first][:25].unique()) > 1, "a shard is not mixed with others"
    firsts = {int(shard[shards.order(shard, 0, epoch, 60)][500]) for epoch in range(20)}
    assert len(firsts) > 10, "shards keep their places"
    assert shards.order(torch.empty(0, dtype=torch.int64), 0, 0).shape == (0,)


def test_an_evaluation_takes_other_shards(tmp_path):
    preprocess = Preprocess(8, (0.5,) * 3, (0.5,) * 3)
    write(tmp_path / "set-val-0.tar", {"a.png": png(), "a.cls": b"light"})
    images, names, told = load_test(f"shards:{tmp_path}", NOWHERE, preprocess, ["dark", "light"])
    assert (names, images.labels.tolist(), images.names) == (["light"], [1], ["set-val-0.tar/a.png"])
    assert told[0].endswith("all 1 pictures of valid count")
    with pytest.raises(DataError, match="has classes that the model does not know: light; it knows dark, grey"):
        load_test(f"shards:{tmp_path}", NOWHERE, preprocess, ["dark", "grey"])


def test_classes_are_names_or_numbers(tmp_path):
    for shard, labels in {"train-0": ["10", "9", "2"], "test-0": ["9\n"]}.items():
        pictures = {f"x/{n}.{end}": text for n, c in enumerate(labels) for end, text in (("png", png(n)), ("cls", c.encode()))}
        write(tmp_path / f"{shard}.tar", pictures | {"x/0.json": b"{}", "README": b"no picture"})
    data = load_images(f"shards:{tmp_path}", NOWHERE, 8)
    assert data.classes == ["2", "9", "10"]
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([2, 1, 0], [1])


GOOD = {"a.png": png(), "a.cls": b"ant", "b.png": png(9), "b.cls": b"bee"}
BAD = {
    "an image without a class": (GOOD | {"c.png": png()}, "train-0.tar: c has not a class (.cls)"),
    "a class without an image": (GOOD | {"c.cls": b"ant"}, "train-0.tar: c has not a picture"),
    "two pictures": (GOOD | {"a.jpg": png()}, "train-0.tar: there are two pictures of a.jpg"),
    "an empty class": (GOOD | {"a.cls": b" "}, "train-0.tar: a.cls must hold a class, a name or a number, got b' '"),
    "bytes for a class": (GOOD | {"a.cls": b"\xff\xfe"}, "train-0.tar: a.cls must hold a class"),
    "one class": (GOOD | {"b.cls": b"ant"}, "has one class, ant: two or more are needed to train"),
    "nothing": ({"a.txt": b"x"}, "train-0.tar has no pictures with classes: expected NAME.jpg beside NAME.cls"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_shards(name, tmp_path):
    members, error = BAD[name]
    write(tmp_path / "train-0.tar", members)
    write(tmp_path / "test-0.tar", GOOD)
    assert error in complaint(f"shards:{tmp_path}", NOWHERE, 8)


def test_bad_places(packed, tmp_path):
    assert "shard nowhere/a-1.tar is missing, and 1 more of 2" in complaint("shards:nowhere/a-{1..2}.tar", NOWHERE, 8)
    assert "{3..1} counts down" in complaint("shards:nowhere/a-{3..1}.tar", NOWHERE, 8)
    assert "has no shards: expected a folder of .tar or .parquet files" in complaint(f"shards:{tmp_path}", NOWHERE, 8)
    (tmp_path / "train-0.tar.gz").touch()
    assert complaint(f"shards:{tmp_path}", NOWHERE, 8).endswith("train-0.tar.gz must be unpacked to .tar")
    assert "is no .tar and no .parquet" in complaint(f"shards:{tmp_path}/train-0.tar.gz", NOWHERE, 8)
    for n in (0, 2):
        write(tmp_path / f"train-{n:02}.tar", GOOD)
    assert "train-01.tar is missing, there are 2 of 3" in complaint(f"shards:{tmp_path}", NOWHERE, 8)
    write(tmp_path / "of" / "val-00000-of-00002.tar", GOOD)
    assert "val-00001-of-00002.tar is missing, there are 1 of 2" in complaint(f"shards:{tmp_path / 'of'}", NOWHERE, 8)
    assert "has valid but none of train" in complaint(f"shards:{tmp_path / 'of'}/val-00000-of-00002.tar", NOWHERE, 8)
    write(tmp_path / "mixed" / "more.tar", GOOD)
    write(tmp_path / "mixed" / "train.tar", GOOD)
    assert "more.tar has no split in its name, unlike other shards" in complaint(f"shards:{tmp_path / 'mixed'}", NOWHERE, 8)
    whole = (packed / "train-000.tar").read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("noise", b"x" * 2000)):
        (tmp_path / f"{name}.tar").write_bytes(content)
        assert f"{name}.tar is no whole .tar" in complaint(f"shards:{tmp_path}/{name}.tar", NOWHERE, 8)


def test_a_class_that_train_lacks_and_a_picture_that_is_none(tmp_path, capsys):
    write(tmp_path / "train-0.tar", GOOD | {"c.png": b"no picture", "c.cls": b"ant"})
    write(tmp_path / "test-0.tar", GOOD | {"b.cls": b"wasp"})
    assert "test-0.tar/b.png is of class 'wasp', which train lacks: it has ant, bee" in complaint(
        f"shards:{tmp_path}", NOWHERE, 8
    )
    write(tmp_path / "test-0.tar", GOOD)
    runs = [f"--data=shards:{tmp_path}", "--image_size=32", "--model=resnet20", "--device=cpu", f"--runs_dir={tmp_path / 'runs'}"]
    assert main([*runs, "--epochs=1", "--name=a"]) == 2
    assert "train-0.tar/c.png cannot be read as an image" in capsys.readouterr().err
    assert main([*runs, "--epochs=1", "--name=a", "--skip_bad"]) == 0
    assert "skipped: train-0.tar/c.png cannot be read" in capsys.readouterr().out
    assert main(["evaluate", "--name=a", f"--runs_dir={tmp_path / 'runs'}"]) == 0
    assert "on 2 images of shards:" in capsys.readouterr().out


def words(packed: Path, runs: Path, name: str = "a") -> list[str]:
    return [f"shards:{packed}" if word.startswith("folder:") else word for word in small(packed, runs, name)]


@pytest.mark.processes
def test_a_killed_run_goes_on_to_the_same_bits_with_workers_too(packed, tmp_path, launch):
    """Killed in the midst of the second epoch; it goes on where the shards lie elsewhere."""
    options = ["--epochs=2", "--augment=affine", "--checkpoint_every=1"]
    done = launch(*words(packed, tmp_path, "whole"), *options, "--workers=0")
    assert done.returncode == 0, done.stderr
    done = launch(*words(packed, tmp_path), *options, "--workers=2", blow=("step", 5))
    assert done.returncode == -signal.SIGKILL, done.stderr
    moved = tmp_path / "moved"
    moved.symlink_to(packed)
    done = launch(*words(moved, tmp_path), *options, "--workers=2", "--resume")
    assert done.returncode == 0, done.stderr
    one, other = (files.read_tensors(tmp_path / name / "last.safetensors") for name in ("whole", "a"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.processes
def test_two_processes_see_what_one_sees(packed, tmp_path, launch):
    options = ["--epochs=1", "--lr=1e-4", "--warmup=0"]
    for name, ranks in (("one", 1), ("two", 2)):
        done = launch(*words(packed, tmp_path, name), *options, ranks=ranks)
        assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "two")[0] == pytest.approx(rows(tmp_path / "one")[0], rel=2e-5)
