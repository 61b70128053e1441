"""Pictures in Parquet files: as those of tar shards, in an order of which everybody reads a part; what is refused."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path

import command
import pytest
import torch
from command import rows, small
from packing import pack, png

from tasks.data import parquet, shards
from tasks.data.images import load_images, load_test
from tasks.image_classification import main
from tasks.loading import prepared
from tasks.options import UserError
from zoo import files
from zoo.pretrained.preprocess import Preprocess

datasets = pytest.importorskip("datasets", reason="Parquet files need zooproof[hub]")
pyarrow = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
NOWHERE = Path("nowhere")
PICTURES = (png(), png(9), png(3))
complaint = partial(command.complaint, load_images)


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """What `datasets` leaves on the disk lies elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def write(path: Path, pictures: list, labels: list, each: int = 4, **kinds) -> Path:
    """Row groups of `each`."""
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "light"])} | kinds
    table = pyarrow.Table.from_pydict(
        {"image": [{"bytes": one, "path": None} for one in pictures], "label": labels, "note": [None] * len(labels)},
        schema=datasets.Features({**features, "note": datasets.Value("string")}).arrow_schema,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=each)
    return path


@pytest.fixture(scope="session")
def tarred(pictures, tmp_path_factory):
    return pack(pictures, tmp_path_factory.mktemp("tarred"))


@pytest.fixture(scope="session")
def stored(pictures, tmp_path_factory):
    """The same pictures in the same order: 13 to train in row groups of 4, 4, 4, 1 in two files, 5 to test in 2."""
    folder, names = tmp_path_factory.mktemp("stored"), ["dark", "light"]
    for split, parts in (("train", (8, 5)), ("test", (5,))):
        found = sorted((pictures / split).rglob("*.png"), key=lambda path: (path.name, path.parent.name))
        for n, count in enumerate(parts):
            some, found = found[:count], found[count:]
            labels = [names.index(path.parent.name) for path in some]
            write(folder / f"{split}-{n:05}-of-{len(parts):05}.parquet", [path.read_bytes() for path in some], labels)
    return folder


@pytest.mark.parametrize("kind", ["shards", "hf"])
def test_pictures_and_classes_are_those_of_tar_shards(kind, stored, tarred):
    ours, theirs = load_images(f"{kind}:{stored}", NOWHERE, 8), load_images(f"shards:{tarred}", NOWHERE, 8)
    assert ours.classes == theirs.classes == ["dark", "light"]
    for role, split in ours.splits.items():
        other, every = theirs.splits[role], torch.arange(len(split))
        assert torch.equal(split.pixels[every], other.pixels[every])
        assert torch.equal(split.labels, other.labels)
    assert torch.equal(ours.train.mean, theirs.train.mean)
    assert torch.equal(ours.train.std, theirs.train.std)
    assert len({*ours.train.names}) == 13
    assert "4 row groups of train" in ours.told[0]
    assert "2 row groups of test" in ours.told[0]
    assert ours.identity()["train"]["fingerprint"] != ours.identity()["test"]["fingerprint"]


def test_an_order_is_a_permutation_that_nothing_but_seed_and_epoch_decides():
    group = torch.arange(40).repeat_interleave(torch.arange(40) % 7 + 3)
    first = parquet.order(group, 16, (3, 4), 60)
    assert sorted(first.tolist()) == list(range(len(group)))
    torch.manual_seed(1)
    assert torch.equal(first, parquet.order(group, 16, (3, 4), 60))
    assert len({tuple(parquet.order(group, 16, (seed, epoch), 60).tolist()) for seed in range(4) for epoch in range(4)}) == 16
    plain = parquet.order(group, 16, window=60)
    assert sorted(plain.tolist()) == list(range(len(group)))
    assert torch.equal(parquet.order(torch.zeros(5, dtype=torch.int64), 2), torch.arange(5))
    assert parquet.order(torch.empty(0, dtype=torch.int64), 2, (0, 0)).shape == (0,)


@pytest.mark.parametrize("draw", [(0, 0), None])
def test_processes_and_workers_read_row_groups_of_their_own(draw):
    """But for the few at the edges of their stretches."""
    groups, each, size = 640, 20, 64
    group = torch.arange(groups).repeat_interleave(each)
    batches = parquet.order(group, size, draw, window=64 * each).split(size)
    for world in (2, 4, 8):
        own = [{*group[torch.cat([batch.tensor_split(world)[rank] for batch in batches])].tolist()} for rank in range(world)]
        assert sum(map(len, own)) < 1.35 * groups
    for workers in (2, 4, 8):
        own = [{*group[torch.cat(batches[worker::workers])].tolist()} for worker in range(workers)]
        assert sum(map(len, own)) < 1.35 * groups
    at_once = [len(group[batch].unique()) for batch in batches]
    assert max(at_once) <= 8 * (4 if draw else 2), "a lane's rows come from a few row groups that follow one another"


def test_a_row_group_is_read_once_while_it_is_in_use(stored, monkeypatch):
    images, read = load_images(f"shards:{stored}", NOWHERE, 8).train, []
    images.pixels.groups.kept.clear()
    inner = parquet.Groups.read
    monkeypatch.setattr(parquet.Groups, "read", lambda self, n: read.append(n) or inner(self, n))
    for batch in images.pixels.batches(3, 0, 0):
        images.batch(batch)
    assert sorted(read) == [0, 1, 2, 3]
    monkeypatch.setattr(parquet, "ROOM", 1)
    images.pixels.groups.kept.clear()
    assert [len(images.pixels.groups[n]) for n in range(4)] == [4, 4, 4, 1]
    assert [*images.pixels.groups.kept] == [3], "more stays than there is room for"
    assert images.pixels.sample(6).tolist() == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("kind", ["shards", "hf"])
def test_workers_read_what_nobody_has_read_before(kind, stored):
    pixels, parts = load_images(f"{kind}:{stored}", NOWHERE, 8).train.pixels, torch.arange(13).split(3)
    whole = torch.cat([pixels[rows] for rows in parts])
    pixels.groups.kept.clear()
    assert torch.equal(torch.cat([*prepared(pixels.__getitem__, parts, 2)]), whole)
    assert not pixels.groups.kept, "the workers did not read"


def test_workers_read_a_validation_of_two_batches(stored, tmp_path):
    shades = [png(n % 2 * 100 + n, 32) for n in range(70)]
    write(tmp_path / "data" / "test.parquet", shades, [0, 1] * 35, each=40)
    write(tmp_path / "data" / "train.parquet", shades[:6], [0, 1] * 3)
    for workers in (0, 2):
        assert main([*words(tmp_path / "data", tmp_path, f"{workers}"), "--epochs=1", f"--workers={workers}"]) == 0
    assert rows(tmp_path / "0")[-1]["valid_loss"] == rows(tmp_path / "2")[-1]["valid_loss"]


def test_mean_and_deviation_are_of_few_row_groups():
    where = torch.stack([torch.arange(100).repeat_interleave(10), torch.arange(10).repeat(100)], 1)
    found = parquet.InGroups([""] * 1000, Preprocess(8, (0.0,) * 3, (1.0,) * 3), where).sample(50)
    assert len(found) == 50
    assert len(where[found, 0].unique()) == 16


def test_labels_are_names_or_numbers_and_may_be_withheld(tmp_path):
    plain = {"image": datasets.Value("binary"), "label": datasets.Value("string")}
    for split, labels in {"train": ["10", " 9", "2", "2"], "test": ["9"], "validation": [None]}.items():
        table = {"image": [png(n) for n in range(len(labels))], "label": labels}
        schema = datasets.Features(plain).arrow_schema
        pq.write_table(pyarrow.Table.from_pydict(table, schema=schema), tmp_path / f"{split}.parquet")
    data = load_images(f"hf:{tmp_path}", NOWHERE, 8)
    assert (data.classes, data.train.labels.tolist(), data.test.labels.tolist()) == (["2", "9", "10"], [2, 1, 0, 0], [1])
    assert f"hf:{tmp_path}: valid has no labels, and is left out" in data.told
    images, names, told = load_test(f"hf:{tmp_path}", NOWHERE, Preprocess(8, (0.5,) * 3, (0.5,) * 3), ["10", "9"])
    assert (names, images.labels.tolist(), told[0].endswith("all 1 pictures of test count")) == (["9"], [1], True)


def test_what_is_refused(stored, tmp_path):
    def said(labels=(0, 1, 0), pictures=PICTURES, asked="", where="shards", **kinds):
        write(tmp_path / "train-0.parquet", [*pictures], [*labels], **kinds)
        write(tmp_path / "test-0.parquet", [png()], [labels[0]], **kinds)
        return complaint(f"{where}:{tmp_path}", NOWHERE, 8, columns=asked)

    number = datasets.Value("int64")
    assert "has no column 'picture': it has image, label, note" in said(asked="picture,label")
    assert "--columns must be two, of pictures and of classes, such as image,label, got 'image'" in said(asked="image")
    assert "has no column of classes: it has image, note; --columns image,label says which" in complaint(
        f"shards:{unlabelled(tmp_path / 'less')}", NOWHERE, 8
    )
    assert "has 2 columns of classes: it has image, label, fine, note" in complaint(f"hf:{twice(tmp_path / 'twice')}", NOWHERE, 8)
    assert "a class must be a text or a whole number, got '0.5'" in said(labels=(0.5, 1.5, 0.5), label=datasets.Value("float64"))
    assert "train-0.parquet/000001 has no label" in said(labels=(0, None, 1), label=number)
    assert "has one class, 7: two or more are needed" in said(labels=(7, 7, 7), label=number)
    for pictures, error in (
        ((png(), None, png()), "1 has no bytes of a pic"),
        ((png(), png(), b"x"), "2 cannot be read as an im"),
    ):
        with pytest.raises(UserError, match=f"^train-0.parquet/00000{error}"):
            said(pictures=pictures)
    assert "is of class '3', which train lacks" in complaint(f"shards:{other_classes(tmp_path / 'other')}", NOWHERE, 8)
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1" + bytes(100))
    assert "train-0.parquet cannot be read as Parquet" in complaint(f"shards:{tmp_path}", NOWHERE, 8)
    (tmp_path / "none").mkdir()
    pq.ParquetWriter(tmp_path / "none" / "train.parquet", pq.read_schema(stored / "test-00000-of-00001.parquet")).close()
    assert "train.parquet has no rows" in complaint(f"shards:{tmp_path / 'none'}", NOWHERE, 8)
    (tmp_path / "none" / "train.tar").touch()
    assert "has shards of .parquet and of .tar: give those of one kind" in complaint(f"shards:{tmp_path / 'none'}", NOWHERE, 8)
    assert "shard" in (line := complaint(f"shards:{stored}/train-{{00000..00002}}-of-00002.parquet", NOWHERE, 8))
    assert "train-00002-of-00002.parquet is missing" in line
    named = partial(complaint, data_root=NOWHERE, columns="a,b")
    assert "--columns a,b is for hf:NAME and for Parquet files of shards:PATH, not for digits" in named("digits")


def test_a_class_is_one_of_those_that_are_named(tmp_path):
    assert [parquet.class_of(n, ["a", "b", "c"], "x") for n in (-1, None, 0, 2, "a")] == ["", "", "a", "c", "a"]
    assert [parquet.class_of(n, None, "x") for n in (-2, 7)] == ["-2", "7"]
    said = [command.complaint(parquet.class_of, n, ["a", "b", "c"], "x") for n in (-2, 3)]
    assert said == ["x: class -2 is none of 3", "x: class 3 is none of 3"]
    write(tmp_path / "train.parquet", [png()] * 3, [0, 1, 5])
    assert complaint(f"shards:{tmp_path}", NOWHERE, 8).endswith("train.parquet: class 5 is none of 2")


def test_a_path_is_no_pattern(tmp_path):
    """`datasets` takes one, in which brackets and stars stand for others."""
    folder = tmp_path / "a[1]b"
    for name in ("train[0].parquet", "test-*?.parquet"):
        write(folder / name, [png(), png(9)], [0, 1])
    write(folder / "test-12.parquet", [png()] * 4, [0] * 4)
    data = load_images(f"shards:{folder}/{{train[0],test-*?}}.parquet", NOWHERE, 8)
    assert (len(data.train), len(data.test)) == (2, 2)


def unlabelled(folder: Path) -> Path:
    write(folder / "train.parquet", [png()], [0])
    table = pq.read_table(folder / "train.parquet").drop_columns("label")
    pq.write_table(table.replace_schema_metadata(None), folder / "train.parquet")
    return folder


def twice(folder: Path) -> Path:
    names = datasets.ClassLabel(names=["a", "b"])
    table = {"image": [{"bytes": png(), "path": None}], "label": [0], "fine": [1], "note": [None]}
    kinds = {"image": datasets.Image(), "label": names, "fine": names, "note": datasets.Value("string")}
    folder.mkdir()
    schema = datasets.Features(kinds).arrow_schema
    pq.write_table(pyarrow.Table.from_pydict(table, schema=schema), folder / "train.parquet")
    return folder


def other_classes(folder: Path) -> Path:
    write(folder / "train.parquet", [png(), png(9)], [1, 2], label=datasets.Value("int64"))
    write(folder / "test.parquet", [png()], [3], label=datasets.Value("int64"))
    return folder


def test_sets_of_the_hub_that_are_refused(tmp_path, monkeypatch):
    assert f"hf:{tmp_path} could not be opened" in complaint(f"hf:{tmp_path}", NOWHERE, 8)
    (tmp_path / "train.json").write_text(json.dumps({"image": "x", "label": 1}) + "\n")
    assert f"hf:{tmp_path} is of json, and of Parquet alone parts can be read" in complaint(f"hf:{tmp_path}", NOWHERE, 8)
    write(tmp_path / "p" / "validation.parquet", [png()], [0])
    assert "has valid but none of train" in complaint(f"hf:{tmp_path / 'p'}", NOWHERE, 8)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert 'datasets is not installed: pip install "zooproof[hub]" brings it' in complaint(f"hf:{tmp_path}", NOWHERE, 8)


def test_fewer_row_groups_than_processes_are_told(stored, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    told = load_images(f"shards:{stored}", NOWHERE, 8).told
    assert "4 row groups for 8 processes, of which some read the same: write files of smaller ones" in told


def test_training_is_that_of_tar_shards_of_the_same_order(stored, tarred, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet.InGroups, "batches", shards.Packed.batches)
    monkeypatch.setattr(parquet.InGroups, "passed", shards.Packed.passed)
    for name, folder in (("tar", tarred), ("parquet", stored)):
        assert main([*words(folder, tmp_path, name), "--epochs=1", "--workers=0"]) == 0
    same(tmp_path, "tar", "parquet")
    assert rows(tmp_path / "tar")[-1]["valid_loss"] == rows(tmp_path / "parquet")[-1]["valid_loss"]


def words(folder: Path, runs: Path, name: str, kind: str = "shards") -> list[str]:
    return [f"{kind}:{folder}" if word.startswith("folder:") else word for word in small(folder, runs, name)]


def same(runs: Path, *names: str) -> None:
    one, other = (files.read_tensors(runs / name / "last.safetensors") for name in names)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.processes
def test_a_killed_run_goes_on_to_the_same_bits_with_workers_too(stored, tmp_path, launch):
    """Killed in the midst of the second epoch."""
    options = ["--epochs=2", "--augment=affine", "--checkpoint_every=1"]
    done = launch(*words(stored, tmp_path, "whole"), *options, "--workers=0")
    assert done.returncode == 0, done.stderr
    done = launch(*words(stored, tmp_path, "a", "hf"), *options, "--workers=2", blow=("step", 5))
    assert done.returncode == -signal.SIGKILL, done.stderr
    done = launch(*words(stored, tmp_path, "a", "hf"), *options, "--workers=2", "--resume")
    assert done.returncode == 0, done.stderr
    same(tmp_path, "whole", "a")


@pytest.mark.processes
def test_two_processes_see_what_one_sees(stored, tmp_path, launch):
    options = ["--epochs=1", "--lr=1e-4", "--warmup=0"]
    for name, ranks in (("one", 1), ("two", 2)):
        done = launch(*words(stored, tmp_path, name), *options, ranks=ranks)
        assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "two")[0] == pytest.approx(rows(tmp_path / "one")[0], rel=2e-5)
