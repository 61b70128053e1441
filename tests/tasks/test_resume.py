"""A run that was killed goes on to the same bits, whatever was done to it; two processes give what one gives."""

from __future__ import annotations

import json
import random
import re
import signal
import time
from pathlib import Path

import processes
import pytest
import torch
from command import refused, rows, small

import zoo
from tasks.image_classification import main
from zoo import files


def assert_same_bits(one: Path, other: Path) -> None:
    """Every tensor of both checkpoints, and every metric."""
    for name in ("last.safetensors", "best.safetensors"):
        a, b = files.read_tensors(one / name), files.read_tensors(other / name)
        assert a.keys() == b.keys()
        different = [key for key in a if not torch.equal(a[key], b[key])]
        assert not different, f"{name}: {len(different)} of {len(a)} tensors differ, first {different[:5]}"
    timings = ("seconds", "per_second")
    for a, b in zip(rows(one), rows(other), strict=True):
        assert {k: v for k, v in a.items() if not k.endswith(timings)} == {k: v for k, v in b.items() if not k.endswith(timings)}
    a, b = (files.read_json(folder / "summary.json") for folder in (one, other))
    assert {k: v for k, v in a.items() if not k.endswith(timings)} == {k: v for k, v in b.items() if not k.endswith(timings)}


SEED = 0
"""Of the blows and delays: the same ones in every run of the tests."""
HARD = ["--epochs=2", "--augment=affine", "--dropout=0.5", "--ema=0.9", "--clip=5", "--checkpoint_every=2"]


@pytest.fixture(scope="module")
def unbroken(pictures, launch, tmp_path_factory):
    """A run of 2 epochs of 3 steps that nobody disturbs; it writes 4 checkpoints."""
    runs = tmp_path_factory.mktemp("unbroken")
    done = launch(*small(pictures, runs), *HARD)
    assert done.returncode == 0, done.stderr
    return runs / "a"


@pytest.mark.processes
def test_a_killed_run_resumes_to_the_same_bits(unbroken, pictures, tmp_path, launch):
    """SIGKILL in a drawn step, in the midst of a checkpoint, and before one is in its place, in a drawn order."""
    draw = random.Random(SEED)
    blows = draw.sample([("step", draw.randint(1, 6)), ("write", 1), ("rename", 1)], 3)
    print(f"drawn with seed {SEED}: {blows}")
    for n, blow in enumerate(blows):
        done = launch(*small(pictures, tmp_path), *HARD, *(["--resume"] if n else []), blow=blow)
        assert done.returncode == -signal.SIGKILL, done.stderr
    done = launch(*small(pictures, tmp_path), *HARD, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_bits(unbroken, tmp_path / "a")
    left = [p.name for p in (tmp_path / "a").iterdir() if p.name.startswith(".")]
    assert not left, "temporary files of the killed processes are left"


@pytest.mark.processes
def test_killed_from_outside_at_any_time(unbroken, pictures, tmp_path, launch):
    """No hook in the process: SIGKILL after a drawn time since it said that it begins."""
    delay, said = random.Random(SEED).uniform(0, 1.5), tmp_path / "said"
    print(f"drawn with seed {SEED}: {delay} s")
    process = processes.start(said, "tasks.image_classification", [*small(pictures, tmp_path), *HARD])
    while process.is_alive() and not ((said / "out").exists() and (said / "out").read_text()):
        time.sleep(0.01)
    time.sleep(delay)
    process.kill()
    process.join()
    done = launch(*small(pictures, tmp_path), *HARD, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_bits(unbroken, tmp_path / "a")


def test_a_finished_run_has_nothing_left_to_do(finished, pictures, capsys):
    folder, _ = finished
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert main(["--runs_dir", str(folder.parent), "--name", "a", "--resume"]) == 0
    assert "finished" in capsys.readouterr().out
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


@pytest.mark.parametrize("change", ["--model=vgg11", "--seed=1", "--batch_size=7", "--epochs=1", "--lr=0.5", "--ema=0.5"])
def test_a_resumed_run_keeps_its_options(finished, capsys, change):
    folder, _ = finished
    assert main(["--runs_dir", str(folder.parent), "--name", "a", "--resume", change]) == 2
    assert capsys.readouterr().err.startswith(f"error: {change.split('=')[0]}")


@pytest.mark.processes
def test_two_processes_give_the_metrics_of_one(pictures, tmp_path, launch, python):
    """With batch norm, two micro-batches a step, and a last batch of one image, of which one process gets nothing.

    A small learning rate: a step that is large on two images makes rounding errors grow, and `test_engine` has float64 for that.
    """
    options = ["--epochs=1", "--ema=0.9", "--lr=1e-4", "--warmup=0"]
    done = launch(*small(pictures, tmp_path, "one"), *options)
    assert done.returncode == 0, done.stderr
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tasks.image_classification")
    done = python(*torchrun, *small(pictures, tmp_path, "two"), *options)
    assert done.returncode == 0, done.stderr
    (one,), (two,) = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert two == pytest.approx(one, rel=2e-5)
    a, b = (files.read_tensors(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    assert a.keys() == b.keys()
    moving = [k for k in a if "running" in k]
    assert moving
    torch.testing.assert_close({k: b[k] for k in moving}, {k: a[k] for k in moving}, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_refuses_other_data(stopped, make_pictures, tmp_path, capsys):
    """The order of the data is part of the run: an image more would shift it all."""
    more = tmp_path / "more"
    make_pictures(more / "train", {"dark": 7, "light": 7})
    make_pictures(more / "test", {"dark": 3, "light": 2}, seed=1)
    options = files.read_json(stopped / "options.json")
    files.write_json(stopped / "options.json", {**options, "data": f"folder:{more}"})
    assert "data" in refused(capsys, tmp_path, "--runs_dir", tmp_path, "--name", "a", "--resume")


@pytest.mark.processes
def test_a_full_disk_keeps_the_old_checkpoint(pictures, tmp_path, launch, capsys):
    """A limit on the size of files stands for the disk; it comes in the second epoch."""
    options = [*small(pictures, tmp_path), "--epochs=2"]
    done = launch(*options, blow=("disk", 5))
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "safetensors" in line, "the file is not named"
    folder = tmp_path / "a"
    assert json.loads(files.read_metadata(folder / "last.safetensors")["progress"])["step"] == 3
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".")], "temporary files are left"
    assert main([*options, "--resume"]) == 0, capsys.readouterr().err


def test_a_diverging_run_stops_and_names_step_and_checkpoint(pictures, tmp_path, capsys):
    code = main([*small(pictures, tmp_path), "--epochs", "4", "--lr", "1e30", "--warmup", "0"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert code == 1
    assert line.startswith("error: ")
    assert re.search(r"step \d+", line)
    assert "checkpoint" in line
    last = tmp_path / "a" / "last.safetensors"
    if last.exists():
        assert str(last) in line
        assert all(t.isfinite().all() for t in files.read_tensors(last).values() if t.is_floating_point())


def test_a_checkpoint_cut_in_half_is_refused(stopped, pictures, tmp_path, capsys):
    for name in ("last.safetensors", "best.safetensors"):
        content = (stopped / name).read_bytes()
        (stopped / name).write_bytes(content[: len(content) // 2])
    runs = ["--runs_dir", tmp_path, "--name", "a"]
    assert "last.safetensors is truncated or damaged" in refused(capsys, tmp_path, *runs, "--resume")
    assert "best.safetensors is truncated or damaged" in refused(capsys, tmp_path, "evaluate", *runs)
    start = [*small(pictures, tmp_path, "b"), "--init", stopped]
    assert "best.safetensors is truncated or damaged" in refused(capsys, tmp_path, *start)


def test_a_checkpoint_of_something_else_is_refused(finished, stopped, pictures, make_pictures, tmp_path, capsys):
    other = zoo.create("vgg13_bn", num_classes=2, head="small")
    zoo.save(other, tmp_path / "other")
    start = [*small(pictures, tmp_path, "b"), "--init"]
    assert "another architecture" in refused(capsys, tmp_path, *start, tmp_path / "other" / "model.safetensors")
    assert "another architecture" in refused(capsys, tmp_path, *start, tmp_path / "other")
    three = make_pictures(tmp_path / "classes", {"dark": 5, "grey": 5, "light": 5})
    runs = ["--runs_dir", tmp_path, "--name", "a"]
    assert "classes" in refused(capsys, tmp_path, "evaluate", *runs, "--data", f"folder:{three}")
    files.write_tensors(stopped / "last.safetensors", other.state_dict(), {"format": "pt"})
    assert "last.safetensors" in refused(capsys, tmp_path, *runs, "--resume")
