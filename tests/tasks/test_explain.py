"""Maps of what speaks for a class: equal to class activation maps where those exist, on image models of every family."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from torch import nn

import zoo
from layers.testing.profiles import THOROUGH
from tasks.explain import class_activation, first_filters, strongest
from tasks.image_classification import image_models, sized
from zoo.model import LinearHead
from zoo.vgg import VGG


def drawn(model: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 and eval mode, nothing at its default."""
    torch.manual_seed(seed)
    for name, value in model.double().state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5 if "var" in name else torch.randn_like(value))
    return model.eval()


@pytest.fixture
def small() -> nn.Module:
    """Stages of 8x8 and 4x4 pixels of images of 16x16, and a linear head on the mean over the grid."""
    return drawn(VGG((1, 2), LinearHead(7, num_classes=5), widths=(6, 7), norm=nn.BatchNorm2d))


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("given", [False, True])
def test_with_a_linear_head_it_is_the_class_activation_map(small, given):
    """Zhou et al.: ``sum_c w_kc A_c``, whose mean is the logit less its bias; Selvaraju et al. draw what is above zero."""
    batch = images(4, 3, 16, 16)
    grid, logits = small.features(batch)[-1], small(batch)
    classes = torch.tensor([1, 0, 3, 2]) if given else logits.argmax(-1)
    expected = torch.einsum("bc,bcyx->byx", small.head.output.weight[classes], grid)
    own = logits.gather(1, classes[:, None])[:, 0] - small.head.output.bias[classes]
    torch.testing.assert_close(expected.mean((1, 2)), own)
    maps, stage, stages = class_activation(small, batch, classes if given else None)
    assert (stage, stages) == (1, 2)
    torch.testing.assert_close(maps, expected.relu(), rtol=1e-12, atol=1e-12)
    assert (maps > 0).any()
    assert (expected < 0).any() or not given, "the relu had nothing to do"


def test_below_four_pixels_it_is_the_paper_on_an_earlier_stage(small):
    """Of images of 8x8 the last stage has 2x2: the first one is taken, through all that follows; the paper's mean times 4x4."""
    batch = images(3, 3, 8, 8)
    maps, stage, _ = class_activation(small, batch)
    assert stage == 0
    grid = small.stages[0](batch).detach().requires_grad_()
    small.head(small.stages[1](grid)).max(-1).values.sum().backward()
    expected = (grid.grad.mean((2, 3), keepdim=True) * grid * 16).sum(1).relu()
    torch.testing.assert_close(maps, expected.detach())
    assert (maps > 0).any()


def test_a_map_does_not_hang_on_its_companions_and_leaves_the_model_alone(small):
    batch = images(4, 3, 16, 16)
    small.requires_grad_(False)  # as frozen models are; maps do without the gradients of weights
    before = {name: value.clone() for name, value in small.state_dict().items()}
    with torch.no_grad():
        whole, _, _ = class_activation(small, batch)
        single, _, _ = class_activation(small, batch[2:3])
    torch.testing.assert_close(single[0], whole[2])
    assert not whole.requires_grad
    assert not batch.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    assert all(p.grad is None for p in small.parameters())
    with pytest.raises(ValueError, match="model must be in eval mode"):
        class_activation(small.train(), batch)


SOME = (
    "vgg11_bn", "resnet18", "resnet20", "googlenet", "inception_v3", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small",
)  # fmt: skip
"""A member of each family and kind of stem; all are in thorough runs."""


@pytest.mark.parametrize("name", image_models() if settings().max_examples >= THOROUGH else SOME)
def test_every_image_model_is_explained(name):
    """At 32 pixels, or the least that it takes: `features` and `head` are the model, and its maps are finite."""
    model = zoo.create(name, num_classes=3, **sized(name, 32)).eval()
    batch = images(2, 3, max(32, model.smallest_image), max(32, model.smallest_image)).float()
    with torch.no_grad():
        stages = model.features(batch)
        torch.testing.assert_close(model.head(stages[-1]), model(batch))
    maps, stage, count = class_activation(model, batch)
    assert count == len(stages)
    assert maps.shape == (2, *stages[stage].shape[-2:])
    assert maps.isfinite().all()
    filters = first_filters(model)
    assert filters.shape[1] == 3
    assert any(torch.equal(filters, p) for p in model.parameters())


def test_the_strongest_channels_come_first():
    grids = torch.tensor([0.0, 3, 1, 2])[:, None, None] * torch.ones(4, 2, 3)
    assert strongest(grids, 3)[:, 0, 0].tolist() == [3, 2, 1]
    assert len(strongest(grids, 9)) == 4
