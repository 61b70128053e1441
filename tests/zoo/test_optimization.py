from __future__ import annotations

import torch

import zoo


def test_optimized_equals_eager_and_leaves_the_model_alone():
    model = zoo.create("vgg11_bn", head="small", num_classes=10)
    images = torch.randn(8, 3, 40, 33)
    model(images)
    model.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fast = zoo.optimize(model, images)
    with torch.no_grad():
        for batch in (images, torch.randn(3, 3, 32, 32)):
            expected, got = model(batch), fast(batch)
            assert not got.requires_grad
            assert (got - expected).abs().max() < 2e-5 * expected.square().mean().sqrt()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
