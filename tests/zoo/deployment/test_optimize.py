from __future__ import annotations

import pytest
import torch

import zoo
from layers.convolution import ConvNormAct
from layers.winograd import WinogradConv2d


def test_optimized_equals_eager_and_leaves_the_model_alone():
    model = zoo.create("vgg11_bn", head="small", num_classes=10)
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
    assert any(isinstance(m, WinogradConv2d) for m in fast.for_example.modules())
    assert not any(isinstance(m, WinogradConv2d) for m in fast.for_others.modules())


def test_weights_are_constants_of_the_program():
    """Which is what lets a compiler lay them out as its convolutions like them, once."""
    images = torch.randn(2, 8, 9, 9)
    fast = zoo.optimize(ConvNormAct(8, 16), images)
    before = fast(images)
    for parameter in fast.parameters():
        if parameter.ndim == 4:
            parameter.zero_()
    assert torch.equal(fast(images), before)


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
