"""Networks of images in integers: near the model's, the same each time, and the same again from a file."""

from __future__ import annotations

import sys
import warnings
from unittest import mock

import pytest
import torch

import zoo
from layers.residual import basic_block
from zoo.files import read_json, read_tensors, write_json, write_tensors
from zoo.model import LinearHead
from zoo.resnet import ResNet, small_stem

RECENT = torch.__version__ >= "2.11"  # compared as a version
needs_torchao = pytest.mark.skipif(not RECENT, reason="torchao needs a newer torch")


def images(n=8):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(n))


@pytest.fixture(scope="module")
def models():
    """(model, quantized)"""
    pytest.importorskip("torchao", reason="the extra quantization")
    torch.manual_seed(0)
    model = zoo.create("resnet20", num_classes=5)
    for _ in range(3):
        model(images(16))  # statistics of batch norms
    return model.eval(), zoo.quantize(model, "static", calibration=images())


def noise(got, expected):
    """Of the values, their signal: the root of the ratio of mean squares."""
    return float((got - expected).square().mean() / expected.square().mean()) ** 0.5


@needs_torchao
@torch.no_grad()
def test_outputs_are_near_the_models(models):
    """Three percent off, for another number of images too; without its layers' scales they would be anything."""
    model, quantized = models
    for given in (images(), images(1), images(3)):
        assert 1e-4 < noise(quantized(given), model(given)) < 0.08
    assert quantized.train() is quantized.eval() is quantized
    assert not quantized.training


@needs_torchao
@torch.no_grad()
@pytest.mark.parametrize("name", ["vgg11_bn", "googlenet", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small"])
def test_every_family_can_be_quantized(name):
    pytest.importorskip("torchao", reason="the extra quantization")
    torch.manual_seed(0)
    model = zoo.create(name, num_classes=5).eval()
    given = torch.randn(2, 3, 32, 32)
    quantized = zoo.quantize(model, "static", calibration=given)
    assert quantized(given.repeat(2, 1, 1, 1)).isfinite().all()


@needs_torchao
def test_the_same_pictures_give_the_same_integers(models):
    model, quantized = models
    again = zoo.quantize(model, "static", calibration=images()).state()
    assert all(torch.equal(x, again[name]) for name, x in quantized.state().items())
    weights = [x for name, x in again.items() if name.endswith("weight")]
    assert len(weights) == 20
    assert {x.dtype for x in weights} == {torch.int8}


@needs_torchao
@torch.no_grad()
def test_files_keep_every_bit(models, tmp_path):
    model, quantized = models
    zoo.save(quantized, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 0.3 * sum(4 * p.numel() for p in model.parameters())
    loaded = zoo.load(tmp_path)
    assert loaded.config == quantized.config
    assert torch.equal(loaded(images(3)), quantized(images(3)))

    state, config = read_tensors(tmp_path), read_json(tmp_path / "config.json")
    for bad, error in [
        ({k: v for k, v in state.items() if k != "3.weight"}, r"another network: 3.weight"),
        (state | {"3.weight": state["3.weight"].float()}, r"another network: 3.weight must have other shapes or dtypes"),
    ]:
        write_tensors(tmp_path / "model.safetensors", bad)
        with pytest.raises(ValueError, match=error):
            zoo.load(tmp_path)
    write_json(tmp_path / "config.json", config | {"size": [3, 0, 8]})
    with pytest.raises(ValueError, match=r"size must be channels, rows and columns, got \[3, 0, 8\]"):
        zoo.load(tmp_path)


@needs_torchao
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")  # of torch, about a scale of its own
@torch.no_grad()
def test_a_program_multiplies_integers():
    pytest.importorskip("torchao", reason="the extra quantization")
    torch.manual_seed(0)
    model = ResNet(basic_block, (1,), (8,), small_stem(3, 8), LinearHead(8, 10), stem_channels=8).eval()
    quantized = zoo.quantize(model, "static", calibration=images())
    fast = zoo.optimize(quantized, images())
    assert noise(fast(images()), quantized(images())) < 0.05  # a sum may be rounded to the other of two integers
    with torch.profiler.profile() as profile:
        fast(images())
    called = {event.key for event in profile.key_averages()}
    assert "onednn::qconv2d_pointwise" in called
    assert not any("convolution" in name for name in called)


@needs_torchao
def test_images_that_do_not_fit(models):
    with pytest.raises(ValueError, match="images: channels must be 3, got 1"):
        models[1](torch.randn(2, 1, 16, 16))
    with pytest.raises(ValueError, match=r"images must be \(16, 16\), the size of those for calibration, got \(2, 3, 16, 20\)"):
        models[1](torch.randn(2, 3, 16, 20))
    with pytest.raises(ValueError, match="axes"):
        models[1](torch.randn(3, 16, 16))


@needs_torchao
def test_what_the_processor_lacks_is_told():
    with mock.patch("zoo.deployment.quantize.has_vnni", return_value=False):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            zoo.quantize(text(), "int8")
        with pytest.warns(UserWarning, match="this processor lacks AVX-512 VNNI"):
            zoo.quantize(text(), "dynamic")


def text():
    return zoo.create("gpt_small", vocab_size=19, dim=8, heads=2, layers=1)


def create():
    return zoo.create("resnet20", num_classes=5)


BAD = {
    r"calibration must be images \(n, c, y, x\), got None": lambda: zoo.quantize(create(), "static"),
    "calibration must be left out, for int8 needs none": lambda: zoo.quantize(text(), "int8", calibration=images()),
    "networks of images take 'static'": lambda: zoo.quantize(create(), "int8"),
    "calibration must be finite": lambda: zoo.quantize(create(), "static", calibration=images() / 0),
    "images: channels must be 3, got 1": lambda: zoo.quantize(create(), "static", calibration=images()[:, :1]),
    "calibration must be of one image at least": lambda: zoo.quantize(create(), "static", calibration=images()[:0]),
    "calibration must be floats": lambda: zoo.quantize(create(), "static", calibration=images().long()),
    "model must be of float32": lambda: zoo.quantize(create().double(), "static", calibration=images()),
    "model must be an ImageModel": lambda: zoo.quantize(text(), "static"),
    "torchao's int4 needs mslk": lambda: zoo.quantize(create(), "int4"),
}


@pytest.mark.parametrize("error", BAD)
def test_bad_input(error):
    with pytest.raises(ValueError, match=error):
        BAD[error]()


def test_an_old_torch_and_a_missing_torchao_are_told():
    if not RECENT:
        with pytest.raises(RuntimeError, match=r"needs torch 2\.11 or newer, got 2\."):
            zoo.quantize(create(), "static", calibration=images())
    with (
        mock.patch("zoo.deployment.quantized_images.LEAST", "2.0"),
        mock.patch.dict(sys.modules, {"torchao.quantization.pt2e.quantize_pt2e": None}),
        pytest.raises(RuntimeError, match=r"needs torchao .*zooproof\[quantization\]"),
    ):
        zoo.quantize(create(), "static", calibration=images())


def test_a_network_composed_by_hand_is_not_saved(models, tmp_path):
    _, quantized = models
    with mock.patch.object(quantized, "config", {"size": [3, 16, 16]}), pytest.raises(ValueError, match="composed by hand"):
        zoo.save(quantized, tmp_path)
    assert not any(tmp_path.iterdir())
