"""Files are whole or not there, and never run code."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch

from layers.weights import same_bits
from zoo import files


def test_round_trip_keeps_bits_and_shared_tensors(tmp_path):
    weight = torch.randn(3, 2)
    tensors = {"a": weight, "tied": weight, "strided": weight.T, "count": torch.tensor(7), "half": weight.bfloat16()}
    files.write_tensors(tmp_path / "x.safetensors", tensors, {"step": "3"})
    read = files.read_tensors(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[k], tensors[k]) and read[k].dtype == tensors[k].dtype for k in tensors)
    assert files.read_metadata(tmp_path / "x.safetensors") == {"step": "3"}


DTYPES = ("bool", "uint8", "int16", "int64", "float16", "bfloat16", "float32", "float64", "float8_e5m2")


def test_tensors_are_read_where_they_are_asked_for(tmp_path):
    """By the header alone until then, and each into memory of its own: the file may change afterwards."""
    path = tmp_path / "x.safetensors"
    raw = torch.randint(256, (48,), dtype=torch.uint8)
    tensors = {name: raw.bool() if name == "bool" else raw.view(getattr(torch, name)).reshape(2, -1) for name in DTYPES}
    tensors |= {"count": torch.tensor(7), "none": torch.empty(0, 3), "strided": torch.randn(4, 3).T}
    files.write_tensors(path, tensors, {"note": "-" * 21})
    found = files.stored(path)
    assert {k: (x.like.shape, x.like.dtype, x.like.is_meta) for k, x in found.items()} == {
        k: (x.shape, x.dtype, True) for k, x in tensors.items()
    }
    read = {name: x.read() for name, x in found.items()}
    path.write_bytes(bytes(path.stat().st_size))
    for name, x in tensors.items():
        assert same_bits(read[name], x), name
        assert read[name].untyped_storage().nbytes() == x.nbytes
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\.safetensors has become shorter while it was read"):
        found["float32"].read()


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "pytorch_model.bin", "disguised.safetensors"])
def test_a_pickle_is_refused(tmp_path, name):
    torch.save({"a": torch.zeros(2)}, tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is a pickle"):
        files.read_tensors(tmp_path / name)


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "pytorch_model.bin"])
def test_the_suffix_of_a_pickle_is_refused_whatever_it_holds(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps({"a": 1}, protocol=0))  # protocol 0 has no first bytes of its own
    with pytest.raises(ValueError, match=f"{name} is a pickle"):
        files.read_tensors(tmp_path / name)


def test_others_may_read_what_was_written(tmp_path):
    files.write_json(tmp_path / "x.json", {})
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("header", [640, 896, 1152, 1408, 19280])
def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path, header):
    """The first bytes of a file are the header's length: 640 is 80 02, as a pickle begins, and 19280 is "PK"."""
    path = tmp_path / "x.safetensors"
    for padding in range(header - 200, header):
        files.write_tensors(path, {"a": torch.ones(1)}, {"note": "-" * padding})
        if int.from_bytes(path.read_bytes()[:8], "little") == header:
            break
    else:
        pytest.fail("no padding gives this header")
    assert files.read_tensors(path)["a"].tolist() == [1.0]


@pytest.mark.parametrize("file", [3, "model.safetensors.index.json"])
def test_an_index_that_names_no_shard_is_refused(tmp_path, file):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(ValueError, match=r"index\.json (must have|is truncated)"):
        files.read_tensors(tmp_path)


@pytest.mark.parametrize("file", ["../x.safetensors", "{outside}/x.safetensors", "part/../../x.safetensors", "", "."])
def test_an_index_that_names_a_file_outside_of_its_folder_is_refused(tmp_path, file):
    (folder := tmp_path / "model" / "part").mkdir(parents=True)
    files.write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(1)})
    files.write_tensors(folder / "x.safetensors", {"b": torch.ones(1)})
    index = {"weight_map": {"a": (file := file.format(outside=tmp_path)), "b": "part/x.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"index\.json must name files of its own folder, got '{re.escape(file)}'$"):
        files.read_tensors(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"b": "part/x.safetensors"}}))
    assert files.read_tensors(tmp_path / "model")["b"].tolist() == [1.0]


def test_a_shard_may_be_a_link(tmp_path):
    """As Hugging Face's cache has them: every file of a model leads to another folder."""
    files.write_tensors(tmp_path / "blob", {"a": torch.ones(1)})
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "m-1.safetensors").symlink_to(tmp_path / "blob")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "m-1.safetensors"}}))
    assert files.read_tensors(tmp_path / "model")["a"].tolist() == [1.0]


@pytest.mark.parametrize("keep", [0, 5, 40, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "x.safetensors"
    files.write_tensors(path, {"a": torch.randn(100)})
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(ValueError, match=r"x\.safetensors is truncated or damaged"):
        files.read_tensors(path)


def test_shards(tmp_path):
    files.write_tensors(tmp_path / "m-1.safetensors", {"a": torch.ones(1)})
    files.write_tensors(tmp_path / "m-2.safetensors", {"b": torch.zeros(2)})
    index = {"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert {k: v.tolist() for k, v in files.read_tensors(tmp_path).items()} == {"a": [1.0], "b": [0.0, 0.0]}
    index["weight_map"]["c"] = "m-2.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="do not hold: c"):
        files.read_tensors(tmp_path)
    content = (tmp_path / "m-2.safetensors").read_bytes()
    (tmp_path / "m-2.safetensors").write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"m-2\.safetensors is truncated or damaged"):
        files.read_tensors(tmp_path)
    (tmp_path / "m-2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"not there: m-2\.safetensors"):
        files.read_tensors(tmp_path)


def test_missing_files_and_damaged_json_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"must hold one of best\.safetensors, model\.safetensors"):
        files.read_tensors(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json cannot be read: No such file"):
        files.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"config\.json is truncated or damaged"):
        files.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="JSON object"):
        files.read_json(tmp_path / "config.json")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    """A limit on file sizes stands for the full disk: the write fails in the middle."""
    path = tmp_path / "x.safetensors"
    files.write_tensors(path, {"a": torch.ones(4)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError):
            files.write_tensors(path, {"a": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files.read_tensors(path)["a"].tolist() == [1.0] * 4
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.safetensors"
    files.write_tensors(path, {"a": torch.ones(4)})
    program = (
        "import os, signal, sys, torch; from zoo import files\n"
        "os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_tensors(sys.argv[1], {'a': torch.zeros(100_000)})"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -9
    assert files.read_tensors(path)["a"].tolist() == [1.0] * 4


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "far").mkdir()
    real, link, dangling = tmp_path / "far" / "real", tmp_path / "link", tmp_path / "dangling"
    real.write_bytes(b"old")
    link.symlink_to(real)
    dangling.symlink_to(tmp_path / "far" / "later")
    for path, target in ((link, real), (dangling, tmp_path / "far" / "later")):
        files.write_bytes(path, b"new")
        assert path.is_symlink()
        assert target.read_bytes() == b"new"
    assert sorted(path.name for path in (tmp_path / "far").iterdir()) == ["later", "real"]


def test_a_pipe_is_written_to(tmp_path):
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    files.write_bytes(pipe, b"new")
    reader.join()
    assert found == [b"new"]
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    files.write_bytes(Path(os.devnull), b"new")
    assert Path(os.devnull).is_char_device()


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no /dev/shm")
def test_shared_memory_is_a_disk():
    """Of all that lies below /dev: a file there is replaced as a whole."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "x"
        path.write_bytes(b"old")
        with path.open("rb") as old:
            files.write_bytes(path, b"new")
            assert old.read() == b"old"
        assert path.read_bytes() == b"new"


def test_permissions_are_the_umasks_or_the_old_ones(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_bytes(tmp_path / "new", b"")
    finally:
        os.umask(before)
    (tmp_path / "old").touch(0o600)
    (tmp_path / "old").chmod(0o604)
    files.write_bytes(tmp_path / "old", b"new")
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "old")] == [0o640, 0o604]


def test_what_cannot_be_written_is_named_as_it_was_given(tmp_path):
    (tmp_path / "file").touch()
    nowhere = (tmp_path / "nowhere" / "a.txt", tmp_path / "file" / "a.txt")
    for path in (*nowhere, tmp_path, Path("/dev/full"), tmp_path / ("é" * 200)):
        with pytest.raises(OSError, match="cannot be written") as caught:
            files.write_bytes(path, b"new")
        assert caught.value.filename == str(path)
        assert files.PART not in str(caught.value)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


# -------------------------------------------------------------------------------------------------------------- in pieces


def write_all(path, pieces):
    """Until one of them is an error."""
    with files.writing(path) as write:
        for piece in pieces:
            if isinstance(piece, BaseException):
                raise piece
            write(piece)


def test_pieces_are_on_the_disk_as_they_come_and_the_file_at_the_end(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(0o600)
    with files.writing(path) as write:
        for n in range(3):
            write(b"new")
            (part,) = tmp_path.glob(f".*{files.PART}")
            assert part.read_bytes() == b"new" * (n + 1)
            assert stat.S_IMODE(part.stat().st_mode) == 0o600
            assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"newnewnew"
    assert [one.name for one in tmp_path.iterdir()] == ["x"]


def test_pieces_go_straight_through_a_pipe(tmp_path):
    """Each one before the next is made."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with files.writing(tmp_path / "pipe") as write:
            for piece in (b"one", b"two"):
                write(piece)
                assert os.read(reader, 100) == piece
    finally:
        os.close(reader)
    assert [one.name for one in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("error", [ValueError("a reason"), OSError(5, "of another file", "other"), KeyboardInterrupt()])
def test_what_stops_between_two_pieces_leaves_the_old_file_and_is_told_as_it_is(tmp_path, error):
    (tmp_path / "old").write_bytes(b"old")
    for name in ("old", "new"):
        with pytest.raises(type(error)) as caught:
            write_all(tmp_path / name, [b"new", error])
        assert caught.value is error
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("old", b"old")]


def test_a_disk_that_fills_between_two_pieces_is_named(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="cannot be written: File too large") as caught:
            write_all(tmp_path / "x", [bytes(1000)] * 9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(tmp_path / "x")
    assert not list(tmp_path.iterdir())
