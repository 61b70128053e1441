from __future__ import annotations

from itertools import chain
from unittest import mock

import pytest
import timm
import torch
import torchvision
from hypothesis import strategies as st
from torch import nn
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from transformers import MobileNetV1Config, MobileNetV1ForImageClassification

import zoo
from layers.testing import Contract, Twin, exercised, initial_distribution, tensor
from zoo.mobilenet import mobilenet_v1, mobilenet_v2, mobilenet_v3, rounded

CLASSES = 7
COMMON = dict(num_classes=CLASSES, in_channels=st.sampled_from([1, 3]), dropout=st.sampled_from([0.0, 0.5]))


def he(a, weight):
    """The law of He et al., 2015, with the fan-out."""
    return 0.0, (2 / (weight.shape[0] * weight[0, 0].numel())) ** 0.5


def images(a):
    # below 33 pixels the last stage has one value per channel, of which a single row cannot have batch statistics
    sizes = dict(height=st.integers(33, 70), width=st.integers(33, 70))
    return dict(images=tensor("batch channels height width", channels=a.in_channels, **sizes))


def with_channels(model, a):
    """torchvision's and timm's first convolution for as many channels as ours."""
    parent = model.features[0] if hasattr(model, "features") else model
    name = "0" if hasattr(model, "features") else "conv_stem"
    old = getattr(parent, name)
    setattr(parent, name, nn.Conv2d(a.in_channels, old.out_channels, 3, 2, 1, bias=False))
    return model


def hugging_face(a):
    config = MobileNetV1Config(
        num_channels=a.in_channels, depth_multiplier=a.width, min_depth=8, tf_padding=False, num_labels=CLASSES,
        classifier_dropout_prob=a.dropout, layer_norm_eps=a.eps,
    )  # fmt: skip
    model = MobileNetV1ForImageClassification(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # theirs is TensorFlow's decay, 0.9997, which means the opposite
    return model


v1 = Contract(
    mobilenet_v1,
    arguments=dict(**COMMON, width=st.sampled_from([0.05, 0.1, 0.13]), eps=st.sampled_from([1e-3, 1e-5])),
    inputs=images,
    outputs=lambda a, s: ("batch", CLASSES),
    twins=[
        Twin(
            "transformers",
            build=hugging_face,
            weights=lambda a: mobilenet_v1(**a.passed()).maps["huggingface"],
            call=lambda m, i: m(pixel_values=i["images"]).logits,
        )
    ],
    invalid=[(dict(width=0), "width"), (dict(stem="x"), "stem"), (dict(dropout=1.0), "dropout")],
    holds=[
        initial_distribution({"*.conv.weight": he, "head.output.weight": lambda a, p: (0.0, 0.01)}),
        exercised(num_classes="of a linear layer", stem="at full size below"),
    ],
    trains_differently=lambda a: True,
    stochastic=lambda a: a.dropout > 0,
    model=True,
)  # fmt: skip


ROWS = (((1, 16, 1, 1),), ((6, 24, 2, 2),), ((6, 32, 1, 2), (6, 48, 1, 1)))
"""Three stages with one block of each kind in place of 17; the whole table is tried at full size below."""


def short_v2(**options):
    with mock.patch("zoo.mobilenet.V2", ROWS):
        return mobilenet_v2(**options)


def their_v2(a):
    rows = [[*row] for row in chain(*ROWS)]
    model = torchvision.models.MobileNetV2(CLASSES, a.width, inverted_residual_setting=rows, dropout=a.dropout)
    return with_channels(model, a)


v2 = Contract(
    short_v2,
    arguments=dict(**COMMON, width=st.sampled_from([0.1, 0.2, 0.35])),
    inputs=images,
    outputs=lambda a, s: ("batch", CLASSES),
    twins=[Twin("torchvision", build=their_v2, weights=lambda a: short_v2(**a.passed()).maps["torchvision"])],
    holds=[initial_distribution({"stem.conv.weight": he})],  # theirs is put in place above, and has torch's law
    invalid=[(dict(width=0), "width"), (dict(stem="x"), "stem")],
    trains_differently=lambda a: True,
    stochastic=lambda a: a.dropout > 0,
    model=True,
    name="mobilenet_v2",
)


TABLE = [
    [(3, 16, 16, 0, 0, 1)],
    [(3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1)],
    [(5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 1, 1)],
]
"""Three stages with one block of each kind; the whole tables are tried at full size below."""


def short_v3(stages, **options):
    return mobilenet_v3(TABLE[:stages], 64, **options)


def exact(model):
    """torch 2.6 multiplies the gradients of a hard sigmoid by a sixth in float32, whatever the dtype."""
    for module in model.modules():
        if isinstance(module, nn.Hardsigmoid):
            module.forward = lambda x: (x + 3).clamp(0, 6) / 6
    return model


def their_v3(a):
    rows, before = [], 16
    for kernel, hidden, channels, excited, swish, stride in chain(*TABLE[: a.stages]):
        options = (before, kernel, hidden, channels, bool(excited), "HS" if swish else "RE", stride, 1, a.width)
        rows.append(InvertedResidualConfig(*options))
        before = channels
    hidden_dim = InvertedResidualConfig.adjust_channels(64, a.width)
    return exact(with_channels(torchvision.models.MobileNetV3(rows, hidden_dim, num_classes=CLASSES, dropout=a.dropout), a))


v3 = Contract(
    short_v3,
    arguments=dict(stages=st.sampled_from([2, 3]), **COMMON, width=st.sampled_from([0.1, 0.2, 0.35])),
    inputs=images,
    outputs=lambda a, s: ("batch", CLASSES),
    twins=[Twin("torchvision", build=their_v3, weights=lambda a: short_v3(**a.passed()).maps["torchvision"])],
    holds=[initial_distribution({"stem.conv.weight": he})],
    invalid=[(dict(width=0), "width"), (dict(dropout=1.0), "dropout"), (dict(num_classes=0), "num_classes")],
    trains_differently=lambda a: True,
    stochastic=lambda a: a.dropout > 0,
    model=True,
    backend="inductor",  # one member of the family
    name="mobilenet_v3",
)


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"])
@pytest.mark.parametrize("width", [1.0, 0.35, 1.4])
def test_full_size_outputs_are_torchvisions(name, width):
    """Their weights into ours, ours back into theirs, the same bits and the same logits."""
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(width_mult=width).eval()
    ours = zoo.create(name, width=width).eval()
    ours.maps["torchvision"].load(ours, theirs.state_dict())
    state, exported = theirs.state_dict(), ours.maps["torchvision"].export(ours)
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[k], state[k]) for k in state)
    images = torch.randn(2, 3, 45, 38)
    with torch.no_grad():
        expected, got = theirs(images), ours(images)
    assert (got - expected).abs().max() <= 1e-5 * expected.std()


@pytest.mark.parametrize("version", [1, 2])
def test_full_size_outputs_are_timms(version):
    torch.manual_seed(0)
    theirs = timm.create_model(f"mobilenetv{version}_100").eval()
    ours = zoo.create(f"mobilenet_v{version}").eval()
    ours.maps["timm"].load(ours, theirs.state_dict())
    assert ours.maps["timm"].export(ours).keys() == theirs.state_dict().keys()
    images = torch.randn(2, 3, 45, 38)
    with torch.no_grad():
        expected, got = theirs(images), ours(images)
    assert (got - expected).abs().max() <= 1e-5 * expected.std()


@pytest.mark.parametrize("divisor", [4, 8, 16])
def test_channels_are_rounded_as_in_the_papers(divisor):
    """A multiple, the nearest unless that takes off more than a tenth."""
    for channels in range(1, 400):
        found = rounded(channels * 0.75, divisor)
        assert found == torchvision.models._utils._make_divisible(channels * 0.75, divisor)
        assert found % divisor == 0
        assert found >= 0.9 * channels * 0.75


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"])
def test_an_image_of_one_pixel_is_enough(name):
    model = zoo.create(name, num_classes=3).eval()
    assert model(torch.randn(2, 3, 1, 1)).shape == (2, 3)
    assert zoo.create(name, num_classes=3, stem="small").eval().features(torch.randn(1, 3, 32, 32))[0].shape[-1] in (16, 32)


def test_initial_values():
    model = zoo.create("mobilenet_v2")
    assert model.head.output.weight.std().item() == pytest.approx(0.01, rel=0.02)
    conv = model.stages[4][-1].conv
    assert conv.weight.std().item() == pytest.approx((2 / 1280) ** 0.5, rel=0.02)
