from __future__ import annotations

import copy
import pickle

import pytest
import torch

import zoo
from layers.convolution import ConvNormAct
from layers.residual import basic_block
from layers.winograd import WinogradConv2d
from zoo.model import LinearHead
from zoo.resnet import ResNet, small_stem
from zoo.vgg import VGG


def test_optimized_equals_eager_and_leaves_the_model_alone():
    model = VGG((1, 2), LinearHead(128, 10), widths=(16, 128), norm=torch.nn.BatchNorm2d)
    images = torch.randn(8, 3, 40, 33)
    model(images)
    model.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fast = zoo.optimize(model, images)
    with torch.no_grad():
        for batch in (images, torch.randn(3, 3, 32, 32), images[:5]):
            expected, got = model(batch), fast(batch)
            assert not got.requires_grad
            assert (got - expected).abs().max() < 2e-5 * expected.square().mean().sqrt()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    for_example, for_others, _ = fast.programs
    assert any(isinstance(m, WinogradConv2d) for m in for_example.modules())
    assert not any(isinstance(m, WinogradConv2d) for m in for_others.modules())


def test_grey_images_of_any_number_and_in_any_layout():
    """Strides of one channel fit either layout, of which a program for any number of images assumes one."""
    torch.manual_seed(0)
    model, images = torch.nn.Sequential(ConvNormAct(1, 8), ConvNormAct(8, 8)).eval(), torch.randn(2, 1, 6, 6)
    fast = zoo.optimize(model, images)
    for other in (images, torch.randn(3, 1, 6, 6), torch.randn(5, 3, 9, 7)[:, 1:2]):
        expected = model(other)
        for same in (other, other.as_strided(other.shape, (other.stride(0), 1, *other.stride()[2:]), other.storage_offset())):
            assert (fast(same) - expected).abs().max() < 2e-5 * expected.square().mean().sqrt()


def test_weights_are_constants_of_the_program():
    """Which is what lets a compiler lay them out as its convolutions like them, once."""
    images = torch.randn(2, 8, 9, 9)
    fast = zoo.optimize(ConvNormAct(8, 16), images)
    before = fast(images)
    for parameter in fast.programs[0].parameters():
        if parameter.ndim == 4:
            parameter.zero_()
    assert torch.equal(fast(images), before)


@pytest.fixture(scope="module")
def images_fast():
    """(images, model, its optimized copy)"""
    torch.manual_seed(0)
    head = LinearHead(8, 10, dropout=0.5)
    model = ResNet(basic_block, (1,), (8,), small_stem(3, 8), head, stem_channels=8).eval()
    torch.nn.init.normal_(model.head.output.weight)
    images = torch.randn(2, 3, 6, 7)
    return images, model, zoo.optimize(model, images)


CHANGES = {
    "load_state_dict": lambda fast, model: fast.load_state_dict(model.state_dict()),
    "load_state_dict, strict=False": lambda fast, model: fast.load_state_dict(model.state_dict(), strict=False),
    "of an outer model": lambda fast, model: torch.nn.Sequential(fast).load_state_dict({"0.x": torch.ones(1)}, strict=False),
    "double": lambda fast, model: fast.double(),
    "half": lambda fast, model: fast.half(),
    "to": lambda fast, model: fast.to(torch.bfloat16),
    "another device": lambda fast, model: fast.to("meta"),
    "outer to": lambda fast, model: torch.nn.Sequential(model, fast).to("meta"),
    "requires_grad_": lambda fast, model: fast.requires_grad_(),
    "state_dict": lambda fast, model: fast.state_dict(),
    "pickle": lambda fast, model: pickle.dumps(fast),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_program_froze_is_not_changed_from_outside(images_fast, change):
    images, model, fast = images_fast
    before = fast(images)
    with pytest.raises(RuntimeError, match=r"an optimized model cannot .*: its weights are constants of a program"):
        CHANGES[change](fast, copy.deepcopy(model))
    assert torch.equal(fast(images), before)


def test_what_changes_nothing_is_let_through(images_fast):
    """As an outer model does to all its parts. There is nothing inside that somebody could change in place."""
    images, _, fast = images_fast
    before = fast(images)
    outer = torch.nn.Sequential(fast, torch.nn.Dropout()).train()
    assert not fast.training
    assert torch.equal(fast.train()(images), before)  # no dropout
    outer.float().cpu().to(images.device).requires_grad_().requires_grad_(False)
    outer.load_state_dict({})
    assert fast.requires_grad_(False) is fast.eval() is fast
    assert [*fast.parameters(), *fast.buffers(), *fast.children()] == []
    assert torch.equal(fast(images), before)
    assert torch.equal(copy.deepcopy(outer)[0](images), before)
    assert not fast(images.clone().requires_grad_()).requires_grad


BAD = {
    "pixels": lambda images: images.mul(99).byte(),
    "integers": lambda images: images.long(),
    "complex": lambda images: images.to(torch.complex64),
    "channels": lambda images: images[:, :2],
    "channels of another size": lambda images: images[:, :2, :5],
    "axes": lambda images: images[0],
    "no rows": lambda images: images[:, :, :0],
    "too small": lambda images: images[:, :, :2],
    "another device": lambda images: images.to("meta"),
    "no tensor": lambda images: images.tolist(),
    "nothing": lambda images: None,
}


@pytest.mark.parametrize("bad", BAD)
def test_the_optimized_copy_complains_as_the_model_does(images_fast, bad, monkeypatch):
    images, model, fast = images_fast
    monkeypatch.setattr(ResNet, "smallest_image", 3)
    found = []
    for m in (model, fast):
        with torch.no_grad(), pytest.raises(Exception) as error:
            m(BAD[bad](images))
        found.append(error)
    ours, theirs = found
    assert ours.type is theirs.type
    if ours.type is ValueError:
        assert str(ours.value) == str(theirs.value)
    with torch.profiler.profile() as profile:
        fast(images)
    assert "mkldnn::_convolution_pointwise" in {event.key for event in profile.key_averages()}  # compiled as before


def test_no_images_and_other_floats(images_fast):
    """The model refuses other floats; its copy converts them, as it has to for a copy in bfloat16."""
    images, _, fast = images_fast
    assert fast(images[:0]).shape == (0, 10)
    for dtype in (torch.float64, torch.bfloat16):
        assert torch.equal(fast(images.to(dtype)), fast(images.to(dtype).float()))


@pytest.mark.parametrize("model", [torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.MaxPool2d(2)])
def test_a_model_without_parameters_is_optimized_too(model):
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(zoo.optimize(model, images)(images), model.eval()(images))


def test_any_number_of_models_is_compiled():
    """torch.compile gives up on a class after eight, and then runs eager, saying so in a log. In `inference_mode` too."""
    images = torch.randn(2, 3, 5, 5)
    models = [zoo.optimize(ConvNormAct(3, 4), images) for _ in range(10)]
    assert not torch._inductor.config.freezing
    for n, fast in enumerate(models):
        with torch.profiler.profile() as profile, torch.inference_mode(n % 2 == 0):
            fast(images)
        assert "mkldnn::_convolution_pointwise" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 2e-2)])
def test_other_dtypes_have_no_use_for_winograd(dtype, tolerance):
    images, model = torch.randn(2, 128, 5, 5), ConvNormAct(128, 128).eval()
    fast = zoo.optimize(model, images, dtype=dtype)
    assert not any(isinstance(m, WinogradConv2d) for m in fast.modules())
    expected = model.double()(images.double())
    torch.testing.assert_close(fast(images.to(dtype)).double(), expected, rtol=tolerance, atol=tolerance)
