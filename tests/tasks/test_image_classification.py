"""The command, as a user runs it: a run and its folder, predictions, weights of others."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
import torchvision
from command import refused, rows, small
from PIL import Image
from torchvision.models import MobileNet_V3_Small_Weights
from torchvision.transforms._presets import ImageClassification

import zoo
from tasks.image_classification import TrainOptions, main, sized
from zoo import files


def balanced(model, pictures):
    """The mean over the classes of the part that is right, by hand."""
    with torch.inference_mode():
        said = {
            name: [
                model.config["classes"][model(model.preprocess(Image.open(path).convert("RGB"))[None]).argmax()]
                for path in sorted((pictures / "test" / name).iterdir())
            ]
            for name in model.config["classes"]
        }
    return sum(answers.count(name) / len(answers) for name, answers in said.items()) / len(said)


def test_a_run_leaves_what_the_readme_says(finished, pictures):
    folder, said = finished
    pngs = {"curves.png", "confusion.png", "mistakes.png"}
    expected = {"config.json", "options.json", "metrics.jsonl", "summary.json", "best.safetensors", "last.safetensors", *pngs}
    assert expected <= {p.name for p in folder.iterdir()}
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pngs)
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".")], "temporary files are left"
    summary = files.read_json(folder / "summary.json")
    assert summary["parameters"] == sum(p.numel() for p in zoo.load(folder).parameters())
    assert summary["seconds"] > 0
    assert summary["images_per_second"] > 0
    assert [row["epoch"] for row in rows(folder)] == [1, 2]
    last, best = rows(folder)[-1], max(rows(folder), key=lambda row: (row["valid_accuracy"], -row["valid_loss"]))
    for name in ("accuracy", "loss"):
        assert summary[f"valid_{name}"] == last[f"valid_{name}"]
        assert summary[f"test_{name}"] == pytest.approx(best[f"valid_{name}"], rel=1e-5), "not that of the best model"
    assert summary["test_balanced_accuracy"] == pytest.approx(balanced(zoo.load(folder), pictures))
    assert "test_top5_accuracy" not in summary, "of two classes"
    assert summary["best_valid_accuracy"] == max(row["valid_accuracy"] for row in rows(folder))
    assert said.count("there is no validation split: valid_* are measured on the test images") == 1
    assert said.count("\r") == 0
    assert len(re.findall(r"^epoch [12]/2 .*accuracy", said, re.MULTILINE)) == 2


def test_loss_at_the_start_is_that_of_guessing(pictures, tmp_path, capsys):
    """ln(2) for two classes: not softmax twice, not a sum in place of a mean."""
    options = ["--epochs=1", "--lr=1e-12", "--warmup=0", "--label_smoothing=0", "--dropout=0"]
    assert main([*small(pictures, tmp_path), *options]) == 0, capsys.readouterr().err
    assert rows(tmp_path / "a")[0]["train_loss"] == pytest.approx(0.693147, abs=0.06)


def test_evaluate_and_predict_use_the_run(finished, pictures, capsys):
    folder, _ = finished
    where = ["--runs_dir", str(folder.parent), "--name", "a"]
    assert main(["evaluate", *where]) == 0
    best = max(rows(folder), key=lambda row: row["valid_accuracy"])
    assert f"accuracy {best['valid_accuracy']:.4f}" in capsys.readouterr().out
    picture = pictures / "test" / "dark" / "00.png"
    assert main(["predict", *where, "--image", str(picture), str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert re.search(r"00\.png: (dark|light) [\d.]+%, (dark|light) [\d.]+%$", lines[0])
    assert sum(map(float, re.findall(r"([\d.]+)%", lines[0]))) == pytest.approx(100, abs=0.2)


def test_digits_need_fewer_epochs():
    assert (TrainOptions().epochs, TrainOptions(data="folder:x").epochs, TrainOptions(epochs=3).epochs) == (7, 10, 3)


def test_a_run_that_streams_is_that_of_memory_to_the_bit(pictures, tmp_path, capsys, monkeypatch):
    from tasks.data import pictures as loading

    options = ["--epochs", "2", "--augment", "crop", "--cutmix", "1"]
    assert main([*small(pictures, tmp_path), *options]) == 0
    assert "read from disk" not in capsys.readouterr().out
    monkeypatch.setattr(loading, "LARGEST", 1)
    monkeypatch.setattr(loading, "half_of_memory", lambda: 17 * 3 * 32 * 32)
    assert main([*small(pictures, tmp_path, "b"), *options]) == 0
    assert "18 pictures of 32x32 pixels would take 0.0 GiB" in capsys.readouterr().out
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    kept, streamed = (files.read_tensors(tmp_path / name / "best.safetensors") for name in ("a", "b"))
    assert all(torch.equal(kept[key], streamed[key]) for key in kept)


def test_heads_and_stems_suit_the_images():
    """A choice where the model gives one."""
    assert sized("vgg16", 32) == {"head": "small"}
    assert sized("vgg16", 128) == {"head": "imagenet"}
    assert sized("resnet18", 127) == {"stem": "small"}
    assert sized("resnet50", 224) == {"stem": "imagenet"}
    assert sized("resnet20", 32) == {}


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
            assert refused(capsys, tmp_path, *where, *images, option, wrong).startswith(f"error: {option} ")


def test_init_starts_from_the_weights_of_a_run(finished, pictures, tmp_path, capsys):
    folder, _ = finished
    options = [*small(pictures, tmp_path), "--epochs", "1", "--lr", "1e-12", "--warmup", "0", "--weight_decay", "0"]
    assert main([*options, "--init", str(folder)]) == 0, capsys.readouterr().err
    old, new = (files.read_tensors(path / "best.safetensors") for path in (folder, tmp_path / "a"))
    weights = [key for key in old if key.endswith("weight")]
    assert weights
    assert all(torch.allclose(old[key], new[key], atol=1e-6) for key in weights)


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
