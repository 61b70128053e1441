"""Numbers that a paper or a reference fixes, held against the reference: a twin that is built with our arguments cannot tell."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import SqueezeExcitation

import zoo
from layers.convolution import SqueezeExcite

TORCHVISION = [name for name in zoo.names() if hasattr(torchvision.models, name)]


def built(name):
    """(our model, torchvision's), with their defaults."""
    options = dict(init_weights=False) if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        return zoo.create(name), getattr(torchvision.models, name)(**options)


def norms(model):
    return {(m.eps, m.momentum, m.affine, m.track_running_stats) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}


def dropouts(model):
    """Probabilities that are not zero, of the heads; torchvision has a dropout for every use, ours may be used twice."""
    return {m.p for m in model.modules() if isinstance(m, nn.Dropout) and m.p}


def squeezed(model, kind):
    """Channels in and within, of every squeeze-and-excitation."""
    return [tuple(p.shape[:2]) for m in model.modules() if isinstance(m, kind) for p in m.parameters() if p.ndim == 4]


@pytest.mark.parametrize("name", TORCHVISION)
def test_defaults_are_torchvisions(name):
    ours, theirs = built(name)
    assert norms(ours) == norms(theirs)
    assert dropouts(ours) == dropouts(theirs)
    assert squeezed(ours, SqueezeExcite) == squeezed(theirs, SqueezeExcitation)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert convolutions(ours) == convolutions(theirs)


def convolutions(model):
    """Channels, kernel, stride, padding, groups and bias of each; sorted, for they are not registered in the same order."""
    return sorted(str(m) for m in model.modules() if isinstance(m, nn.Conv2d))


PAPERS = {
    "mobilenet_v3_large": dict(eps=1e-3, momentum=0.01),  # section 5.1.1: decay 0.99
    "mobilenet_v3_small": dict(eps=1e-3, momentum=0.01),
    "mobilenet_v2": dict(eps=1e-5, momentum=0.1),
    "mobilenet_v1": dict(eps=1e-5, momentum=0.1),  # timm's
    "inception_v3": dict(eps=1e-3, momentum=0.1),  # TensorFlow's eps
    "googlenet": dict(eps=1e-3, momentum=0.1),
    "resnet50": dict(eps=1e-5, momentum=0.1),
    "resnet20": dict(eps=1e-5, momentum=0.1),
    "vgg16_bn": dict(eps=1e-5, momentum=0.1),
}


@pytest.mark.parametrize("name", PAPERS)
def test_norms_have_the_numbers_of_their_sources(name):
    with torch.device("meta"):
        model = zoo.create(name)
    assert norms(model) == {(*PAPERS[name].values(), True, True)}


AUXILIARY = {"googlenet": 0.3, "inception_v3": 0.4}


@pytest.mark.parametrize("name", AUXILIARY)
def test_auxiliary_losses_count_as_in_the_papers(name):
    """GoogLeNet, section 5: 0.3; torchvision's references/classification/train.py: 0.4 for Inception v3's."""
    with torch.device("meta"):
        assert zoo.create(name).auxiliary_weight == AUXILIARY[name]
