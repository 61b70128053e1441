"""Evaluate, predict and export: classes by name, folders of any kind, files of answers, devices and precision."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
from dataclasses import fields

import pytest
import torch
from command import refused, small
from PIL import Image
from torch import nn

import zoo
from tasks import image_classification, translation
from tasks.data import DataError
from tasks.image_classification import main
from tasks.image_evaluation import same_source
from zoo import files


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    """An untrained model of ant, bee and cow, which sees grey pictures of 12x12 pixels, and a folder of such pictures."""
    folder = tmp_path_factory.mktemp("animals")
    torch.manual_seed(0)
    model = zoo.create("resnet20", num_classes=3, in_channels=1)
    nn.init.normal_(model.get_submodule("head.output").weight)
    model.config |= {"classes": ["ant", "bee", "cow"], "preprocess": zoo.Preprocess(12, (0.5,), (0.25,)).config()}
    zoo.save(model, folder / "model")
    draw = torch.Generator().manual_seed(0)
    for name, count in (("ant", 5), ("bee", 4), ("cow", 3)):
        (folder / "x" / name).mkdir(parents=True)
        for n in range(count):
            pixels = torch.randint(0, 256, (14, 12, 3), generator=draw, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / "x" / name / f"{n}.png")
    return folder


def said_by(model, folder) -> dict[str, torch.Tensor]:
    """Probabilities of every picture, by its path, from the model alone."""
    with torch.inference_mode():
        return {
            str(path): model(model.preprocess(Image.open(path))[None]).softmax(-1)[0] for path in sorted(folder.rglob("*.png"))
        }


def numbers_in(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"(?:accuracy|loss) ([\d.]+)", text)]


def test_classes_are_matched_by_name(animals, tmp_path, capsys):
    """Other names are refused with both lists, whatever their number; some of the names are counted as what they are."""
    use = ["evaluate", "--init", animals / "model", "--device", "cpu"]
    assert main([*map(str, use), "--data", f"folder:{animals / 'x'}"]) == 0
    whole = capsys.readouterr().out
    assert "all of its 12 pictures count" in whole
    assert f"on 12 images of folder:{animals / 'x'}\n" in whole
    found = said_by(zoo.load(animals / "model"), animals / "x")
    right = {name: [] for name in ("ant", "bee", "cow")}
    for path, row in found.items():
        name = os.path.basename(os.path.dirname(path))
        right[name].append(["ant", "bee", "cow"][row.argmax()] == name)
    flat = [one for answers in right.values() for one in answers]
    assert numbers_in(whole)[:2] == pytest.approx([sum(flat) / 12, sum(sum(r) / len(r) for r in right.values()) / 3], abs=1e-4)
    shutil.copytree(animals / "x", tmp_path / "y")
    (tmp_path / "y" / "cow").rename(tmp_path / "y" / "eel")
    (tmp_path / "y" / "ant" / "0.png").write_bytes(b"refused before it is read")
    line = refused(capsys, tmp_path, *use, "--data", f"folder:{tmp_path / 'y'}")
    assert line == f"error: folder:{tmp_path / 'y'} has classes that the model does not know: eel; it knows ant, bee, cow"
    shutil.rmtree(tmp_path / "y" / "eel")
    shutil.rmtree(tmp_path / "y" / "ant")
    (tmp_path / "y").rename(tmp_path / "bees")
    assert main([*map(str, use), "--data", f"folder:{tmp_path / 'bees'}"]) == 0
    some = capsys.readouterr().out
    assert "which have 1 of the model's 3 classes" in some
    assert numbers_in(some)[0] == pytest.approx(sum(right["bee"]) / 4, abs=1e-4)
    bees = torch.stack([row[1] for path, row in found.items() if "bee" in path])
    assert numbers_in(some)[2] == pytest.approx(-bees.log().mean().item(), abs=1e-3)


def test_the_same_names_in_another_form_of_unicode(animals, tmp_path, capsys):
    model = zoo.load(animals / "model")
    model.config["classes"] = ["cafe\u0301", "bee", "cow"]
    zoo.save(model, tmp_path / "model")
    shutil.copytree(animals / "x", tmp_path / "y")
    (tmp_path / "y" / "ant").rename(tmp_path / "y" / "caf\u00e9")
    assert main(["evaluate", "--init", str(tmp_path / "model"), "--data", f"folder:{tmp_path / 'y'}", "--device", "cpu"]) == 0


@pytest.mark.parametrize("inside", ["test", "Testing", "val", "a/test"])
def test_one_split_alone_counts_as_a_whole(animals, tmp_path, capsys, inside):
    shutil.copytree(animals / "x", tmp_path / inside)
    assert main(["evaluate", "--init", str(animals / "model"), "--data", f"folder:{tmp_path}", "--device", "cpu"]) == 0
    assert "on 12 images" in capsys.readouterr().out


def test_the_test_split_of_the_run_is_that_of_training(make_pictures, tmp_path, capsys):
    """Of a folder without splits: not the pictures that the model has seen, under any spelling of the path."""
    root = make_pictures(tmp_path / "x", {"dark": 12, "light": 11})
    assert main([*small(root, tmp_path / "runs"), "--epochs", "1"]) == 0
    summary = files.read_json(tmp_path / "runs" / "a" / "summary.json")
    use = ["evaluate", "--runs_dir", str(tmp_path / "runs"), "--device", "cpu"]
    capsys.readouterr()
    for more in ([], ["--data", f"folder:{root}"], ["--data", f"folder:{root}/../x/"]):
        assert main([*use, *more]) == 0
        said = capsys.readouterr().out
        assert "on 2 images" in said
        expected = [summary[f"test_{name}"] for name in ("accuracy", "balanced_accuracy", "loss")]
        assert numbers_in(said) == pytest.approx(expected, abs=1e-4)
    shutil.copytree(root, tmp_path / "y")
    assert main([*use, "--data", f"folder:{tmp_path / 'y'}"]) == 0
    assert "on 23 images" in capsys.readouterr().out


def test_a_test_split_that_has_changed_is_told(stopped, pictures, tmp_path, capsys):
    shutil.copytree(pictures, tmp_path / "x")
    options = files.read_json(stopped / "options.json")
    files.write_json(stopped / "options.json", options | {"data": f"folder:{tmp_path / 'x'}"})
    for changed in (False, True):
        if changed:
            (tmp_path / "x" / "test" / "dark" / "00.png").unlink()
        assert main(["evaluate", "--runs_dir", str(tmp_path), "--name", "a", "--device", "cpu"]) == 0
        assert ("the test images are not what they were in training" in capsys.readouterr().out) == changed


def test_sources_are_the_same_by_their_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert same_source("digits", "digits")
    assert same_source("folder:x", f"folder:{tmp_path}/y/../x/")
    assert not same_source("folder:x", "folder:y")
    assert not same_source("folder:digits", "digits")


def test_an_evaluation_saves_what_was_said(animals, tmp_path, capsys):
    use = [
        "evaluate",
        "--init",
        str(animals / "model"),
        "--data",
        f"folder:{animals / 'x'}",
        "--batch_size",
        "5",
        "--device",
        "cpu",
    ]
    expected = said_by(zoo.load(animals / "model"), animals / "x")
    for name in ("a.csv", "a.tsv", "b.jsonl"):
        assert main([*use, "--output", str(tmp_path / name), "--all", "--per_class"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines[-4:]] == ["class", "ant", "bee", "cow"]
        assert [line.split()[-1] for line in lines[-3:]] == ["5", "4", "3"]
    rows = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == [*expected]
    for row, probabilities in zip(rows, expected.values(), strict=True):
        assert row["true"] == os.path.basename(os.path.dirname(row["file"]))
        assert row["class"] == ["ant", "bee", "cow"][probabilities.argmax()]
        assert row["probability"] == max(row["probabilities"].values())
        assert [*row["probabilities"]] == ["ant", "bee", "cow"]
        assert [*row["probabilities"].values()] == pytest.approx(probabilities.tolist(), abs=1e-5)
    with (tmp_path / "a.csv").open(newline="") as file:
        header, *table = csv.reader(file)
    assert header == ["file", "true", "class", "probability", *(f"probabilities.{name}" for name in ("ant", "bee", "cow"))]
    assert [(row[0], row[2], float(row[5])) for row in table] == [
        (r["file"], r["class"], r["probabilities"]["bee"]) for r in rows
    ]
    assert [line.split("\t") for line in (tmp_path / "a.tsv").read_text().splitlines()] == [header, *table]
    assert main([*use, "--output", "-", "--all"]) == 0
    captured = capsys.readouterr()
    assert captured.out == (tmp_path / "b.jsonl").read_text()
    assert "on 12 images" in captured.err


def test_predict_takes_folders_in_batches_and_tells_the_same(animals, tmp_path, capsys):
    """Any size of batches; folders with all that is in them, in order, and single files."""
    expected = said_by(zoo.load(animals / "model"), animals / "x")
    first = str(animals / "x" / "cow" / "2.png")
    use = ["predict", "--init", str(animals / "model"), "--device", "cpu", "--image", first, str(animals / "x")]
    texts = []
    for size in (1, 5, 100):
        assert main([*use, "--batch_size", str(size)]) == 0
        texts.append(capsys.readouterr().out)
    assert len({*texts}) == 1
    lines = texts[0].splitlines()
    assert [line.rpartition(": ")[0] for line in lines] == [first, *expected]
    for line, row in zip(lines[1:], expected.values(), strict=True):
        order = row.argsort(descending=True).tolist()
        assert line.rpartition(": ")[2] == ", ".join(f"{['ant', 'bee', 'cow'][i]} {row[i]:.1%}" for i in order)
    assert main([*use, "--top", "1"]) == 0
    assert all(line.count("%") == 1 for line in capsys.readouterr().out.splitlines())
    assert main([*use, "--top", "1", "--all"]) == 0
    assert capsys.readouterr().out == texts[0]
    for name, more in (("a.csv", ["--top", "2"]), ("a.tsv", ["--top", "2"]), ("b.jsonl", ["--all", "--top", "1"])):
        assert main([*use, "--output", str(tmp_path / name), *more]) == 0
        assert capsys.readouterr().out == f"{tmp_path / name}: 13 pictures\n"
    assert main([*use, "--output", "-", "--all", "--top", "1"]) == 0
    assert capsys.readouterr() == ((tmp_path / "b.jsonl").read_text(), "")
    with (tmp_path / "a.csv").open(newline="") as file:
        header, *table = csv.reader(file)
    assert header == ["file", "class", "probability", "class_2", "probability_2"]
    assert [line.split("\t") for line in (tmp_path / "a.tsv").read_text().splitlines()] == [header, *table]
    rows = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == [row[0] for row in table] == [first, *expected]
    assert [row["class"] for row in rows] == [row[1] for row in table]
    for row in rows[1:]:
        assert [*row["probabilities"].values()] == pytest.approx(expected[row["file"]].tolist(), abs=1e-5)


def test_bad_pictures_stop_predict_or_are_named(animals, tmp_path, capsys):
    shutil.copytree(animals / "x", tmp_path / "x")
    bad = [tmp_path / "x" / "ant" / "1.png", tmp_path / "x" / "cow" / "0.png"]
    for path in bad:
        path.write_bytes(b"no picture")
    use = ["predict", "--init", str(animals / "model"), "--device", "cpu", "--batch_size", "4", "--image", str(tmp_path / "x")]
    assert main([*use, "--output", str(tmp_path / "x.csv")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {bad[0]} cannot be read as an image")
    assert "--skip_bad" in captured.err
    assert not (tmp_path / "x.csv").exists()
    assert main([*use, "--skip_bad", "--output", str(tmp_path / "x.csv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [str(path) in line and line.startswith("skipped: ") for path, line in zip(bad, lines, strict=False)] == [True, True]
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 1 + 10
    (tmp_path / "none").mkdir()
    assert "is a folder without pictures" in refused(capsys, tmp_path, *use, tmp_path / "none")
    assert main([*use[:-1], str(bad[0]), "--skip_bad"]) == 2
    assert "no picture could be read" in capsys.readouterr().err


def test_predict_holds_one_batch_of_pictures(animals, capsys, monkeypatch):
    """Whatever their number: what is asked of the decoder at a time, and what the model sees."""
    from tasks import image_scores
    from tasks.data import pictures

    sizes, seen, decode, call = [], [], pictures.decode, image_scores.log_probabilities
    monkeypatch.setattr(pictures, "decode", lambda paths, *rest: sizes.append(len(paths)) or decode(paths, *rest))
    monkeypatch.setattr(image_scores, "log_probabilities", lambda m, c, images: seen.append(len(images)) or call(m, c, images))
    assert main(["predict", "--init", str(animals / "model"), "--image", str(animals / "x"), "--batch_size", "5"]) == 0
    assert sizes == seen == [5, 5, 2]


def test_predict_writes_each_batch_before_the_next(animals, tmp_path, capsys, monkeypatch):
    """So that no answer is kept: into a pipe, and into a file, of which nothing stays where a later batch is refused."""
    from tasks.data import pictures

    os.mkfifo(tmp_path / "pipe")
    reader, decode = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK), pictures.decode
    read, written, last = [], [], sorted(map(str, (animals / "x").rglob("*.png")))[10:]

    def watched(paths, *rest):
        with contextlib.suppress(BlockingIOError):  # there is nothing yet
            read.append(os.read(reader, 9999).count(b"\n"))
        written.append([path.read_text().count("\n") for path in tmp_path.glob(".*")])
        if [*paths] == last:
            raise DataError("no picture")
        return decode(paths, *rest)

    monkeypatch.setattr(pictures, "decode", watched)
    use = ["predict", "--init", str(animals / "model"), "--image", str(animals / "x"), "--batch_size", "5", "--output"]
    assert main([*use, str(tmp_path / "pipe")]) == 2
    assert (read, written) == ([5, 5], [[], [], []])
    written.clear()
    assert main([*use, str(tmp_path / "x.jsonl")]) == 2
    assert written == [[0], [5], [10]]
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    os.close(reader)


@pytest.fixture
def no_state():
    """accelerate's shared state knows the precision of the first run in a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("command", ["predict", "explain", "evaluate", "train"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_everything_runs_in_the_precision(animals, no_state, pictures, tmp_path, capsys, monkeypatch, command, precision):
    """What the convolutions put out: of the commands, of what `predict` draws, and of the test at the end of training."""
    dtypes, load = [], zoo.load

    def hooked(path):
        model = load(path)
        model.stem.register_forward_hook(lambda module, inputs, output: dtypes.append((output.dtype, output.device.type)))
        return model

    monkeypatch.setattr(zoo, "load", hooked)
    use = {
        "predict": (words := ["predict", "--init", animals / "model", "--image", animals / "x"]),
        "explain": [*words, "--explain", tmp_path / "why.png", "--features", tmp_path / "features.png"],
        "evaluate": ["evaluate", "--init", animals / "model", "--data", f"folder:{animals / 'x'}"],
        "train": [*small(pictures, tmp_path), "--epochs", "1"],
    }[command]
    assert main([*map(str, use), "--device", "cpu", "--precision", precision]) == 0
    assert {*dtypes} == {({"fp32": torch.float32, "bf16": torch.bfloat16}[precision], "cpu")}
    assert command != "explain" or len(dtypes) == 4  # one of what is answered, two of what is explained, one of the features


def test_who_does_not_compute_takes_no_device():
    """An option is there if it has an effect: the commands of the test above, and of its like for translation."""
    offered = {
        name: {n for n, c in module.COMMANDS.items() if {"device", "precision"} & {f.name for f in fields(c.options)}}
        for name, module in {"images": image_classification, "text": translation}.items()
    }
    assert offered == {"images": {"train", "evaluate", "predict"}, "text": {"train", "evaluate", "translate"}}


def test_exports_tell_their_classes(animals, tmp_path, capsys):
    model = zoo.load(animals / "model")
    made = zoo.create("mobilenet_v3_small", num_classes=3)
    made.config |= {key: model.config[key] for key in ("classes", "preprocess")}
    zoo.save(made, tmp_path / "model")
    for name in ("x.safetensors", "x.pth"):
        assert main(["export", "--init", str(tmp_path / "model"), "--out", str(tmp_path / name)]) == 0
        assert "classes in the order of the logits" in (said := capsys.readouterr().out)
        assert said.endswith(": ant, bee, cow\n")
    assert json.loads(files.read_metadata(tmp_path / "x.safetensors")["classes"]) == ["ant", "bee", "cow"]


@pytest.mark.parametrize("known", [["dark", "light"], ["light", "dark"], ["day", "night"]])
def test_init_matches_classes_by_name(pictures, tmp_path, capsys, known):
    """After an epoch without learning, the rows of the output layer are those of the names."""
    donor = zoo.create("resnet20", num_classes=2)
    donor.config |= {"classes": known, "preprocess": zoo.Preprocess(32, (0.5,) * 3, (0.25,) * 3).config()}
    zoo.save(donor, tmp_path / "donor")
    use = [*small(pictures, tmp_path / "runs"), "--epochs", "1", "--lr", "1e-12", "--warmup", "0", "--weight_decay", "0"]
    assert main([*use, "--init", str(tmp_path / "donor")]) == 0
    said, new = capsys.readouterr().out, zoo.load(tmp_path / "runs" / "a")
    assert new.config["classes"] == ["dark", "light"]
    rows = [known.index(name) for name in ("dark", "light")] if "dark" in known else []
    kept = donor.head.output.weight[rows]
    assert (len(rows) > 0) == (kept.shape == (2, 64) and torch.allclose(kept, new.head.output.weight, atol=1e-6))
    assert torch.allclose(next(donor.stem.parameters()), next(new.stem.parameters()), atol=1e-6)
    assert ("a new output layer, for the weights know other classes: day, night" in said) == ("day" in known)
    assert ("in the order of these classes" in said) == (known == ["light", "dark"])
    assert ("the output layer is kept, for the classes are the same" in said) == (known == ["dark", "light"])
