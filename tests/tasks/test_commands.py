"""Every complaint of the command is one line and leaves nothing behind; its options, its help, its imports."""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import torch
from command import refused, small

import zoo
from tasks import commands, image_classification, text_classification, translation
from tasks.image_classification import image_models, main
from tasks.options import owner
from tasks.saved import run_or_path
from zoo import files


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
    said = capsys.readouterr().out
    assert "1 unreadable" in said
    assert f"skipped: {bad} cannot be read as an image" in said
    assert files.read_json(runs / "a" / "summary.json")["skipped_images"] == 1


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["--model", "vgg11_bn", "--image_size", "16"], "--image_size must be 32 or more"),
        (["--model", "vgg11_bm"], "--model vgg11_bm is unknown, did you mean vgg11_bn"),
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
        (["predict", "--image", "nowhere.png"], "--image nowhere.png is not there"),
        (["predict"], "--image"),
        (["predict", "--image", __file__, "--batch_size", "0"], "--batch_size must be 1 or more"),
        (["predict", "--image", __file__, "--top", "0"], "--top must be 1 or more"),
        (["predict", "--image", __file__, "--output", "x.txt"], "--output must end in .csv or .tsv or .jsonl"),
        (["predict", "--image", __file__, "--output", "nowhere/x.csv"], "--output nowhere/x.csv: the folder"),
        (["predict", "--image", __file__, "--init", "nowhere"], "--init nowhere is not there"),
        (["predict", "--image", __file__], "--name b"),
        (["predict", "--explain", "x.png", "--image", *([__file__] * 101)], "--explain draws 100 pictures at most, got 101"),
        (["evaluate", "--batch_size", "0"], "--batch_size must be 1 or more"),
        (["evaluate", "--output", "nowhere/x.jsonl"], "--output nowhere/x.jsonl: the folder"),
        (["evaluate", "--all"], "--all is about --output"),
        (["--augment", "flop"], "did you mean flip"),
        (["--augment", "flip,crop"], "augment takes one of"),
        (["--data", "digits", "--fit", "pad"], "--fit pad is for --data folder:PATH"),
        (["--mixup", "-1"], "--mixup must be 0 or more"),
        (["--erasing", "1"], "--erasing"),
    ],
)
def test_bad_options_are_named(pictures, tmp_path, capsys, wrong, named):
    runs = tmp_path / "runs"
    command, wrong = (wrong[:1], wrong[1:]) if not wrong[0].startswith("-") else ([], wrong)
    common = ["--runs_dir", runs, "--name", "b"] if command else small(pictures, runs, "b")
    assert named in refused(capsys, runs, *command, *common, *wrong)


def test_an_existing_name_is_not_overwritten(finished, pictures, capsys):
    folder, _ = finished
    assert "--resume" in refused(capsys, folder.parent, *small(pictures, folder.parent))


def test_a_pickle_of_more_than_tensors_is_refused(pictures, tmp_path, capsys):
    torch.save({"weight": partial(int)}, tmp_path / "weights.pt")
    line = refused(capsys, tmp_path, *small(pictures, tmp_path), "--init", tmp_path / "weights.pt")
    assert "weights.pt is damaged, or holds more than tensors" in line


@pytest.mark.processes
def test_help_is_documentation_and_does_not_wait_for_torch(python):
    script = (
        "import runpy, sys\ntry: runpy.run_module('tasks.image_classification', run_name='__main__', alter_sys=True)\n"
        "finally: print('torch' in sys.modules)"
    )
    done = python("-c", script, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("False\n"), "--help imports torch"
    words = " ".join(done.stdout.split())
    for text in ("--batch_size", "default: 64", "--epochs", "default: 10", "evaluate", "predict", "--skip_bad"):
        assert text in words
    for line in re.split(r"\n  (?=--)", done.stdout)[1:]:
        assert len(line.split()) > 3, f"{line.split()[0]} is not documented"


@pytest.mark.processes
@pytest.mark.parametrize("room", ["layers", "zoo"])
def test_a_foreign_package_of_our_name_is_named(tmp_path, room, python):
    (tmp_path / room).mkdir()
    (tmp_path / room / "__init__.py").write_text("")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import tasks.image_classification"
    done = python("-c", script)
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("ImportError")
    assert str(tmp_path / room) in line


def test_an_image_too_small_for_an_auxiliary_head(pictures, tmp_path, capsys):
    assert main([*small(pictures, tmp_path), "--model", "inception_v3", "--image_size", "128"]) == 2
    assert "--image_size must be 299 or more for inception_v3, got 128" in capsys.readouterr().err


def test_only_image_models_are_offered_and_taken(capsys, pictures, tmp_path):
    """Every name that the zoo has is either one of them, or refused with their names."""
    names, other = image_models(), ["transformer_base", "gpt2", "llama_small"]
    assert {"vgg11_bn", "resnet20"} < {*names} < {*zoo.names()} - {*other}
    for name in other:
        line = refused(capsys, tmp_path, *small(pictures, tmp_path), "--model", name)
        assert line.startswith(f"error: --model {name} is no image model, did you mean ")
        assert line.endswith(f"There are {', '.join(names)}")


@pytest.mark.parametrize("program", [image_classification, text_classification, translation])
def test_help_groups_the_options_and_shows_an_example_that_parses(program, capsys):
    for name, command in program.COMMANDS.items():
        found, given = commands.parse("x", program.COMMANDS, [name, *shlex.split(command.example)])
        assert found is command
        assert given, "no example"
        with pytest.raises(SystemExit):
            program.main([name, "--help"])
        said = capsys.readouterr().out
        assert f"{name} {command.example}\n" in said
        titles = {owner(command.options, option).title for option in command.options.__dataclass_fields__}
        assert all(f"\n{title}:\n" in said for title in titles)


def test_a_home_is_expanded_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/zoo")
    for program in (image_classification, text_classification, translation):
        for command in program.COMMANDS.values():
            for name, spec in command.options.__dataclass_fields__.items():
                if spec.metadata["path"]:
                    many = spec.metadata["many"]
                    value = getattr(command.options(**{name: ["~/a", "b~"] if many else "~/a"}), name)
                    assert value == (["/home/zoo/a", "b~"] if many else "/home/zoo/a"), name


def test_a_run_is_named_or_given_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a", "runs/b", "b"):
        (tmp_path / name).mkdir(parents=True)
    found = [run_or_path(name, Path("runs")) for name in ("a", "b", "runs/a", "c", "torchvision:DEFAULT", "")]
    assert found == ["runs/a", "b", "runs/a", "c", "torchvision:DEFAULT", ""]
