"""The command, as a user runs it: a run and its folder, resume to the bit, two processes, and every complaint."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch.nn import functional as F
from torchvision.models import MobileNet_V3_Small_Weights
from torchvision.transforms._presets import ImageClassification

import zoo
from tasks.image_classification import Classification, main, sized
from zoo import files

ROOT = Path(__file__).parents[2]
TASK = "tasks.image_classification"


def small(pictures: Path, runs: Path, name: str = "a") -> list[str]:
    """13 images in steps of 6, 6 and 1, each in two micro-batches."""
    return f"""--data folder:{pictures} --image_size 32 --batch_size 6 --accumulate 2 --device cpu --optimizer sgd --lr 0.01
               --runs_dir {runs} --name {name}""".split()


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


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


# ------------------------------------------------------------------------------------------------- a run and its folder


@pytest.fixture(scope="module")
def finished(pictures, launch, tmp_path_factory):
    """A run of two epochs, written by the command in a process of its own."""
    runs = tmp_path_factory.mktemp("runs")
    done = launch(*small(pictures, runs), "--epochs", 2)
    assert done.returncode == 0, done.stderr
    return runs / "a", done


def test_a_run_leaves_what_the_readme_says(finished):
    folder, done = finished
    pngs = {"curves.png", "confusion.png", "mistakes.png"}
    due = {"config.json", "options.json", "metrics.jsonl", "summary.json", "best.safetensors", "last.safetensors", *pngs}
    assert due <= {p.name for p in folder.iterdir()}
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pngs)
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".")], "temporary files are left"
    summary = files.read_json(folder / "summary.json")
    assert summary["parameters"] == sum(p.numel() for p in zoo.load(folder).parameters())
    assert summary["seconds"] > 0
    assert summary["images_per_second"] > 0
    assert [row["epoch"] for row in rows(folder)] == [1, 2]
    assert summary["test_accuracy"] in [row["test_accuracy"] for row in rows(folder)]
    assert done.stdout.count("\r") == 0
    assert len(re.findall(r"^epoch [12]/2 .*accuracy", done.stdout, re.MULTILINE)) == 2


def test_loss_at_the_start_is_that_of_guessing(pictures, tmp_path, capsys):
    """ln(2) for two classes: not softmax twice, not a sum where a mean is due."""
    options = ["--epochs=1", "--lr=1e-12", "--warmup=0", "--label_smoothing=0", "--dropout=0"]
    assert main([*small(pictures, tmp_path), *options]) == 0, capsys.readouterr().err
    assert rows(tmp_path / "a")[0]["train_loss"] == pytest.approx(0.693147, abs=0.06)


def test_evaluate_and_predict_use_the_run(finished, pictures, capsys):
    folder, _ = finished
    where = ["--runs_dir", str(folder.parent), "--name", "a"]
    assert main(["evaluate", *where]) == 0
    best = max(rows(folder), key=lambda row: row["test_accuracy"])
    assert f"accuracy {best['test_accuracy']:.4f}" in capsys.readouterr().out
    picture = pictures / "test" / "dark" / "00.png"
    assert main(["predict", *where, "--image", str(picture), str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert re.search(r"00\.png: (dark|light) [\d.]+%, (dark|light) [\d.]+%$", lines[0])
    assert sum(map(float, re.findall(r"([\d.]+)%", lines[0]))) == pytest.approx(100, abs=0.2)


def test_heads_and_stems_suit_the_images():
    """A choice where the model gives one; a name that is not there is no matter of its size."""
    assert sized("vgg16", 32) == {"head": "small"}
    assert sized("vgg16", 128) == {"head": "imagenet"}
    assert sized("resnet18", 127) == {"stem": "small"}
    assert sized("resnet50", 224) == {"stem": "imagenet"}
    assert sized("resnet20", 32) == sized("resnet19", 32) == {}


def test_a_prediction_is_explained_in_pictures(finished, pictures, tmp_path, capsys):
    folder, _ = finished
    where = ["predict", "--runs_dir", str(folder.parent), "--name", "a", "--image"]
    images = [str(pictures / "test" / name / "00.png") for name in ("dark", "light")]
    assert main([*where, *images]) == 0
    plain = capsys.readouterr().out
    why, features = tmp_path / "why.png", tmp_path / "features.PNG"
    assert main([*where, *images, "--explain", str(why), "--features", str(features)]) == 0
    assert capsys.readouterr().out == plain
    assert sorted(p.name for p in tmp_path.iterdir()) == ["features.PNG", "why.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (why, features))
    content = why.read_bytes()
    assert main([*where, images[0], "--explain", str(why)]) == 0
    assert content != why.read_bytes()
    folder = tmp_path / "folder.png"
    folder.mkdir()
    for option in ("--explain", "--features"):
        for wrong in (tmp_path / "nowhere" / "a.png", tmp_path / "a.jpg", folder):
            line = refused(capsys, tmp_path, *where, *images, option, wrong)
            assert line == f"error: {option} must be a .png file in a folder that exists, got {wrong}"


def test_init_starts_from_the_weights_of_a_run(finished, pictures, tmp_path, capsys):
    folder, _ = finished
    options = [*small(pictures, tmp_path), "--epochs", "1", "--lr", "1e-12", "--warmup", "0", "--weight_decay", "0"]
    assert main([*options, "--init", str(folder)]) == 0, capsys.readouterr().err
    old, new = (files.read_tensors(path / "best.safetensors") for path in (folder, tmp_path / "a"))
    weights = [key for key in old if key.endswith("weight")]
    assert weights
    assert all(torch.allclose(old[key], new[key], atol=1e-6) for key in weights)


# ------------------------------------------------------------------------------------------------------ resume to the bit


HARD = ["--epochs=2", "--augment=affine", "--dropout=0.5", "--ema=0.9", "--clip=5", "--checkpoint_every=2"]


@pytest.fixture(scope="module")
def unbroken(pictures, launch, tmp_path_factory):
    """A run of 2 epochs of 3 steps that nobody disturbs; it writes 4 checkpoints."""
    runs = tmp_path_factory.mktemp("unbroken")
    done = launch(*small(pictures, runs), *HARD)
    assert done.returncode == 0, done.stderr
    return runs / "a"


def test_a_killed_run_resumes_to_the_same_bits(unbroken, pictures, tmp_path, launch, bombed):
    """SIGKILL in a drawn step, in the midst of a checkpoint, and before one is in its place, in a drawn order."""
    blows = random.sample([("step", random.randint(1, 6)), ("write", 1), ("rename", 1)], 3)
    print(f"drawn: {blows}")
    for n, (place, count) in enumerate(blows):
        done = bombed(place, count, *small(pictures, tmp_path), *HARD, *(["--resume"] if n else []))
        assert done.returncode == -signal.SIGKILL, done.stderr
    done = launch(*small(pictures, tmp_path), *HARD, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_bits(unbroken, tmp_path / "a")
    left = [p.name for p in (tmp_path / "a").iterdir() if p.name.startswith(".")]
    assert not left, "temporary files of the killed processes are left"


def test_killed_from_outside_at_any_time(unbroken, pictures, tmp_path, launch):
    """No hook in the process: SIGKILL after a drawn time since it said that it begins."""
    words = [sys.executable, "-m", TASK, *small(pictures, tmp_path), *HARD]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    delay = random.uniform(0, 1.5)
    print(f"drawn: {delay} s")
    with subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
    done = launch(*small(pictures, tmp_path), *HARD, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_bits(unbroken, tmp_path / "a")


def test_a_finished_run_has_nothing_left_to_do(finished, pictures, capsys):
    folder, _ = finished
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert main(["--runs_dir", str(folder.parent), "--name", "a", "--resume"]) == 0
    assert "finished" in capsys.readouterr().out
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


@pytest.mark.parametrize("change", ["--model=vgg11", "--seed=1", "--batch_size=7", "--epochs=9", "--lr=0.5", "--ema=0.5"])
def test_a_resumed_run_keeps_its_options(finished, capsys, change):
    folder, _ = finished
    assert main(["--runs_dir", str(folder.parent), "--name", "a", "--resume", change]) == 2
    assert capsys.readouterr().err.startswith(f"error: {change.split('=')[0]}")


# -------------------------------------------------------------------------------------------------------- two processes


def test_two_processes_give_the_metrics_of_one(pictures, tmp_path, launch, torchrun):
    """With batch norm, two micro-batches a step, and a last batch of one image, of which one process gets nothing.

    A small learning rate: a step that is large on two images makes rounding errors grow, and `test_engine` has float64 for that.
    """
    options = ["--epochs=1", "--dropout=0", "--ema=0.9", "--lr=1e-4", "--warmup=0"]
    for run, name in ((launch, "one"), (torchrun, "two")):
        done = run(*small(pictures, tmp_path, name), *options)
        assert done.returncode == 0, done.stderr
    (one,), (two,) = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert two == pytest.approx(one, rel=2e-5)
    a, b = (files.read_tensors(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    assert a.keys() == b.keys()
    moving = [k for k in a if "running" in k]
    assert moving
    torch.testing.assert_close({k: b[k] for k in moving}, {k: a[k] for k in moving}, rtol=1e-4, atol=1e-6)


# -------------------------------------------------------------------------------------------------------- every complaint


def refused(capsys: pytest.CaptureFixture[str], runs: Path, *arguments: object) -> str:
    """The one line of a command that ends with exit code 2 and leaves the runs as they were."""
    before = sorted(runs.rglob("*")) if runs.exists() else []
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert code == 2, captured.out + captured.err
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert (sorted(runs.rglob("*")) if runs.exists() else []) == before, "something is left behind"
    return lines[0]


def test_bad_folders_are_named(make_pictures, tmp_path, capsys):
    runs = tmp_path / "runs"
    options = ["--image_size", 32, "--runs_dir", runs]
    assert "nowhere" in refused(capsys, runs, *options, "--data", f"folder:{tmp_path / 'nowhere'}")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty" in refused(capsys, runs, *options, "--data", f"folder:{empty}")
    hollow = make_pictures(tmp_path / "hollow", {"full": 6, "hollow_class": 0})
    assert "hollow_class" in refused(capsys, runs, *options, "--data", f"folder:{hollow}")
    assert "digits" in refused(capsys, runs, "--runs_dir", runs, "--data", "digit")


def test_a_truncated_image_is_named_or_skipped_and_counted(make_pictures, tmp_path, capsys):
    runs, root = tmp_path / "runs", make_pictures(tmp_path / "pictures", {"dark": 10, "light": 10})
    bad = root / "dark" / "03.png"
    bad.write_bytes(bad.read_bytes()[:700])
    options = [*small(root, runs), "--epochs", "1"]
    assert str(bad) in refused(capsys, runs, *options)
    assert main([*options, "--skip_bad"]) == 0
    assert "1 unreadable" in capsys.readouterr().out
    assert files.read_json(runs / "a" / "summary.json")["skipped_images"] == 1


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["--image_size", "16"], "--image_size must be 32 or more"),
        (["--model", "vgg11_bm"], "vgg11_bn"),
        (["--batch_size", "0"], "--batch_size"),
        (["--epochs", "0"], "--epochs"),
        (["--lr", "nan"], "--lr"),
        (["--lr", "-1"], "--lr"),
        (["--label_smoothing", "1"], "--label_smoothing"),
        (["--ema", "1"], "--ema"),
        (["--accumulate", "0"], "--accumulate"),
        (["--clip", "-1"], "--clip"),
        (["--dropout", "2"], "dropout"),
        (["--precision", "fp16", "--device", "cpu"], "--precision"),
        (["--init", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--resume"], "b"),
        (["evaluate"], "b"),
        (["predict", "--image", "nowhere.png"], "b"),
    ],
)
def test_bad_options_are_named(pictures, tmp_path, capsys, wrong, named):
    runs = tmp_path / "runs"
    command, wrong = (wrong[:1], wrong[1:]) if not wrong[0].startswith("-") else ([], wrong)
    common = ["--runs_dir", runs, "--name", "b"] if command else small(pictures, runs, "b")
    assert named in refused(capsys, runs, *command, *common, *wrong)


def test_unknown_options_and_choices_are_argparse_errors(capsys):
    for wrong in (["--no_such_option", "1"], ["--precision", "fp8"], ["--epochs", "three"]):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2
        assert wrong[0] in capsys.readouterr().err


def test_an_existing_name_is_not_overwritten(finished, pictures, capsys):
    folder, _ = finished
    assert "--resume" in refused(capsys, folder.parent, *small(pictures, folder.parent))


@pytest.fixture
def stopped(finished, tmp_path):
    """A copy of the finished run, whose checkpoint the test may damage."""
    folder = tmp_path / "a"
    folder.mkdir()
    for name in ("options.json", "config.json", "metrics.jsonl", "last.safetensors", "best.safetensors"):
        (folder / name).write_bytes((finished[0] / name).read_bytes())
    return folder


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


def test_a_pickle_of_more_than_tensors_is_refused(pictures, tmp_path, capsys):
    torch.save({"weight": partial(int)}, tmp_path / "weights.pt")
    line = refused(capsys, tmp_path, *small(pictures, tmp_path), "--init", tmp_path / "weights.pt")
    assert "weights.pt is damaged, or holds more than tensors" in line


def test_fine_tuning_of_published_weights(pictures, tmp_path, capsys, monkeypatch):
    """`--init torchvision:NAME --freeze`: their normalisation and size, a new head, frozen parts to the bit; exported again."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(MobileNet_V3_Small_Weights.IMAGENET1K_V1.value, "transforms", partial(ImageClassification, crop_size=40))
    reference = torchvision.models.mobilenet_v3_small()
    cached = tmp_path / "hub" / "checkpoints" / MobileNet_V3_Small_Weights.DEFAULT.url.rpartition("/")[2]
    cached.parent.mkdir(parents=True)
    torch.save(reference.state_dict(), cached)
    options = ["--data", f"folder:{pictures}", "--model", "mobilenet_v3_small", "--epochs", "2", "--batch_size", "4"]
    options += ["--runs_dir", tmp_path, "--name", "tuned", "--init", "torchvision:DEFAULT", "--freeze", "stem, stage1"]
    assert main([str(option) for option in options]) == 0, capsys.readouterr().err
    cached.unlink()  # a run that goes on needs it no more
    assert main(["--runs_dir", str(tmp_path), "--name", "tuned", "--resume"]) == 0, capsys.readouterr().err
    model = zoo.load(tmp_path / "tuned")
    assert model.preprocess.image_size == 40
    assert model.preprocess.mean == pytest.approx([0.485, 0.456, 0.406])
    assert model.config["classes"] == ["dark", "light"]
    state, before = model.maps["torchvision"].export(model), reference.state_dict()
    for key in (k for k in before if "num_batches" not in k):
        frozen = key.startswith(("features.0.", "features.1."))
        assert (state[key].shape == before[key].shape and torch.equal(state[key], before[key])) == frozen, key
    assert main(["export", "--runs_dir", str(tmp_path), "--name", "tuned", "--out", str(tmp_path / "out.pth")]) == 0
    two = torchvision.models.mobilenet_v3_small(num_classes=2)
    two.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)
    assert main(["export", "--runs_dir", str(tmp_path), "--name", "tuned", "--out", str(tmp_path / "out.safetensors")]) == 0
    two.load_state_dict(files.read_tensors(tmp_path / "out.safetensors"), strict=True)
    assert "--freeze" in refused(capsys, tmp_path, *small(pictures, tmp_path, "b"), "--freeze", "layer1")
    export = ["export", "--runs_dir", tmp_path, "--name", "tuned", "--out"]
    assert "--out must" in refused(capsys, tmp_path, *export, tmp_path / "x.onnx")
    assert "no twin in timm" in refused(capsys, tmp_path, *export, tmp_path / "x.pth", "--to", "timm")


def test_a_resumed_run_refuses_other_data(stopped, make_pictures, tmp_path, capsys):
    """The order of the data is part of the run: an image more would shift it all."""
    more = tmp_path / "more"
    make_pictures(more / "train", {"dark": 7, "light": 7})
    make_pictures(more / "test", {"dark": 3, "light": 2}, seed=1)
    options = files.read_json(stopped / "options.json")
    files.write_json(stopped / "options.json", {**options, "data": f"folder:{more}"})
    assert "data" in refused(capsys, tmp_path, "--runs_dir", tmp_path, "--name", "a", "--resume")


def test_a_full_disk_keeps_the_old_checkpoint(pictures, tmp_path, bombed, capsys):
    """A limit on the size of files stands for the disk; it comes in the second epoch."""
    options = [*small(pictures, tmp_path), "--epochs=2"]
    done = bombed("disk", 5, *options)
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


# -------------------------------------------------------------------------------------------------------- help and imports


def test_help_is_documentation_and_does_not_wait_for_torch(launch):
    script = (
        f"import runpy, sys\ntry: runpy.run_module({TASK!r}, run_name='__main__', alter_sys=True)\n"
        "finally: print('torch' in sys.modules)"
    )
    done = launch("--help", launcher=("-c", script))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("False\n"), "--help imports torch"
    words = " ".join(done.stdout.split())
    for text in ("--batch_size", "default: 64", "--epochs", "default: 10", "evaluate", "predict", "--skip_bad"):
        assert text in words
    for line in re.split(r"\n  (?=--)", done.stdout)[1:]:
        assert len(line.split()) > 3, f"{line.split()[0]} is not documented"


def test_both_spellings_of_an_option(finished, capsys):
    folder, _ = finished
    for option in (["--batch-size", "7"], ["--batch_size", "7"], ["--batch-size=7"], ["--batch_size=7"]):
        assert main(["--runs-dir", str(folder.parent), "--name", "a", "--resume", *option]) == 2
        assert capsys.readouterr().err.startswith("error: --batch_size 7"), option


@pytest.mark.parametrize("room", ["layers", "zoo"])
def test_a_foreign_package_of_our_name_is_named(tmp_path, room, launch):
    (tmp_path / room).mkdir()
    (tmp_path / room / "__init__.py").write_text("")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import tasks.image_classification"
    done = launch(launcher=("-c", script))
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("ImportError")
    assert str(tmp_path / room) in line


# ------------------------------------------------------------------------------------------------------- auxiliary heads


def test_losses_of_auxiliary_heads_are_added():
    """0.3 times each, as GoogLeNet's paper has it, in training; evaluation knows the main head only."""
    torch.manual_seed(0)
    model = zoo.create("googlenet", num_classes=3, width=1 / 8, dropout=0.0, dropout_auxiliary=0.0)
    task = Classification(SimpleNamespace(train=[0], test=[0]), "none", 0.0, 0, 4)
    task.auxiliary_weight = model.auxiliary_weight
    images, labels = torch.randn(4, 3, 40, 40), torch.tensor([0, 1, 2, 0])
    main_loss, first, second = (F.cross_entropy(x, labels, reduction="sum") for x in model.train()(images))
    torch.testing.assert_close(task.loss(model, (images, labels))[0], main_loss + 0.3 * (first + second))
    torch.testing.assert_close(
        task.loss(model.eval(), (images, labels))[0], F.cross_entropy(model(images), labels, reduction="sum")
    )


def test_an_image_too_small_for_an_auxiliary_head(pictures, tmp_path, capsys):
    assert main([*small(pictures, tmp_path), "--model", "inception_v3", "--image_size", "128"]) == 2
    assert "--image_size must be 299 or more for inception_v3, got 128" in capsys.readouterr().err
