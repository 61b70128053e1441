"""Training with rounded numbers: a run leaves a network of integers, which is what is told of it; it resumes; refusals."""

from __future__ import annotations

from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from command import dies_in_its_second_epoch, one_line, rows, small
from torch.nn import functional as F

import zoo
from layers.fake_quantize import FakeQuantized
from tasks.data.images import load_images
from tasks.image_classification import main
from tasks.image_scores import measure
from zoo import files
from zoo.deployment.quantized_images import QuantizedImages

RECENT = torch.__version__ >= "2.11"  # compared as a version
needs_torchao = pytest.mark.skipif(not RECENT, reason="torchao needs a newer torch")
LAST = torch.channels_last  # as the run has it: another order of sums rounds some numbers to the other of two integers
QUANTIZE = ["--quantize", "static", "--epochs", "2"]


@needs_torchao
def test_a_run_leaves_integers_and_resumes_to_the_same(pictures, tmp_path, capsys, monkeypatch):
    pytest.importorskip("torchao", reason="the extra quantization")
    assert main([*small(pictures, tmp_path), *QUANTIZE]) == 0
    said, folder = capsys.readouterr().out, tmp_path / "a"
    summary, integers, best = files.read_json(folder / "summary.json"), zoo.load(folder / "int8"), zoo.load(folder)
    assert isinstance(integers, QuantizedImages)
    data = load_images(f"folder:{pictures}", tmp_path, 32)
    assert torch.equal(
        integers(data.test.batch(torch.arange(5))[0]), zoo.load(folder / "int8")(data.test.batch(torch.arange(5))[0])
    )
    for model, key in ((integers, "test_accuracy"), (best, "test_float32_accuracy")):
        logs = measure(model, nullcontext(), data.test, 8).logs
        assert summary[key] == pytest.approx(float((logs.argmax(1) == data.test.labels).float().mean()))
    loss = F.nll_loss(measure(integers, nullcontext(), data.test, 8).logs, data.test.labels)
    assert summary["test_loss"] == pytest.approx(float(loss), rel=1e-4)
    assert f"test accuracy {summary['test_accuracy']:.4f} in the integers of {folder / 'int8'}" in said
    images, labels = data.valid.batch(torch.arange(5))
    images = images.contiguous(memory_format=LAST)
    with torch.no_grad(), FakeQuantized():
        rounded = F.cross_entropy(best.to(memory_format=LAST)(images), labels)
    measured = next(row["valid_loss"] for row in rows(folder) if row["epoch"] == summary["best_epoch"])
    assert measured == pytest.approx(float(rounded), rel=1e-5)
    assert measured != pytest.approx(float(F.cross_entropy(best(images).detach(), labels)), rel=1e-5), "nothing was rounded"

    assert main(["evaluate", "--init", str(folder / "int8")]) == 0
    assert f"test accuracy {summary['test_accuracy']:.4f}" in capsys.readouterr().out
    assert main(["predict", "--init", str(folder / "int8"), "--image", str(pictures / "test" / "dark" / "00.png")]) == 0

    with monkeypatch.context() as patch:
        dies_in_its_second_epoch(patch)
        assert main([*small(pictures, tmp_path, "b"), *QUANTIZE]) == 130
    assert main([*small(pictures, tmp_path, "b"), *QUANTIZE, "--resume"]) == 0
    for name in ("best.safetensors", "int8/model.safetensors"):
        one, other = files.read_tensors(folder / name), files.read_tensors(tmp_path / "b" / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(x, other[key]) for key, x in one.items())


@needs_torchao
@pytest.mark.processes
def test_two_processes_round_as_one(pictures, tmp_path, launch):
    pytest.importorskip("torchao", reason="the extra quantization")
    for name, ranks in (("one", 1), ("two", 2)):
        options = ["--quantize=static", "--epochs=1", "--lr=1e-4", "--warmup=0"]
        done = launch(*small(pictures, tmp_path, name), *options, ranks=ranks)
        assert done.returncode == 0, done.stderr
    (one,), (two,) = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=2e-3)  # a last bit may round to the other of two integers
    images, labels = load_images(f"folder:{pictures}", tmp_path, 32).valid.batch(torch.arange(5))
    with torch.no_grad(), FakeQuantized():
        assert two["valid_loss"] == pytest.approx(float(F.cross_entropy(zoo.load(tmp_path / "two")(images), labels)), rel=2e-3)


@pytest.mark.parametrize("option", ["--compile", "--precision=bf16", "--gradient_checkpointing", "--tensor=2"])
def test_what_cannot_be_rounded_is_told(option, capsys):
    assert f"--quantize static and {option.split('=')[0]} exclude each other" in one_line(
        capsys, main, "--quantize", "static", option
    )


def test_what_is_missing_is_told_before_training(pictures, tmp_path, capsys):
    if not RECENT:
        assert "--quantize static: quantizing networks of images needs torch 2.11 or newer, got 2." in one_line(
            capsys, main, *small(pictures, tmp_path), "--quantize", "static"
        )
    with (
        mock.patch("zoo.deployment.quantized_images.LEAST", "2.0"),
        mock.patch.dict("sys.modules", {"torchao.quantization.pt2e.quantize_pt2e": None}),
    ):
        line = one_line(capsys, main, *small(pictures, tmp_path), "--quantize", "static")
    assert "--quantize static: quantizing networks of images needs torchao" in line
    assert not any(tmp_path.iterdir())
