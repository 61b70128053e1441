from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torchvision.models import inception as of_v3
from torchvision.models.googlenet import BasicConv2d, Inception

from layers import inception
from layers.convolution import ConvNormAct
from layers.testing import Contract, Twin, exercised, tensor
from layers.weights import WeightMap
from zoo.inception import V1, V3


def narrow(channels, step=16):
    """A sixteenth of the channels; the input of a block has few enough."""
    return channels if channels < step else channels // step


def ours(in_channels, out_channels, kernel_size, **options):
    return inception.conv_unit(narrow(in_channels), narrow(out_channels), kernel_size, **options)


def theirs(in_channels, out_channels, **options):
    return of_v3.BasicConv2d(narrow(in_channels), narrow(out_channels), **options)


def rows(block, units):
    names = [name for name, module in block.named_modules() if isinstance(module, ConvNormAct)]
    return WeightMap(*((f"{a}.{p}", f"{b}.{q}") for a, b in zip(names, units.split(), strict=True) for p, q in PARTS))


PARTS = (("conv", "conv"), ("norm", "bn"))


def contract(build, reference, units, arguments, channels, halves=False):
    def size(n):
        return (n - 3) // 2 + 1 if halves else n

    return Contract(
        partial(build, conv=ours),
        arguments=dict(in_channels=st.sampled_from([3, 5]), **arguments),
        inputs=lambda a: dict(
            images=tensor(
                "batch channels height width", channels=a.in_channels, height=st.integers(5, 9), width=st.integers(5, 9)
            )
        ),
        outputs=lambda a, s: ("batch", channels(a), size(s.height), size(s.width)),
        twins=[
            Twin(
                "torchvision",
                build=lambda a: reference(*a.passed().values(), conv_block=theirs),
                weights=lambda a: rows(build(**a.passed(), conv=ours), units),
            )
        ],
        holds=[exercised(conv="with units of few channels here; with those of the net in tests/zoo/test_inception.py")],
        invalid=[(dict(in_channels=0), "in_channels")],
        trains_differently=lambda a: True,
        name=build.__name__,
    )


block_a = contract(
    inception.inception_a, of_v3.InceptionA, V3["5b"], dict(pool=st.sampled_from([32, 64])), lambda a: 14 + a.pool // 16
)
block_b = contract(inception.inception_b, of_v3.InceptionB, V3["6a"], {}, lambda a: 30 + a.in_channels, halves=True)
block_c = contract(inception.inception_c, of_v3.InceptionC, V3["6b"], dict(hidden_dim=st.sampled_from([128, 160])), lambda a: 48)
block_d = contract(inception.inception_d, of_v3.InceptionD, V3["7a"], {}, lambda a: 32 + a.in_channels, halves=True)
block_e = contract(inception.inception_e, of_v3.InceptionE, V3["7b"], {}, lambda a: 128)


def flat(a):
    return a.in_channels, a.one, *a.three, *a.five, a.pool


v1 = Contract(
    inception.inception_v1,
    defaults=dict(kernel_size=(3, "torchvision's Inception, branch3")),
    arguments=dict(
        in_channels=st.sampled_from([3, 5]),
        one=st.integers(1, 4),
        three=st.sampled_from([(2, 3), (1, 4)]),
        five=st.sampled_from([(3, 2), (4, 1)]),
        pool=st.integers(1, 3),
        kernel_size=st.sampled_from([3, 5]),
    ),
    inputs=block_a.inputs,
    outputs=lambda a, s: ("batch", a.one + a.three[1] + a.five[1] + a.pool, s.height, s.width),
    twins=[
        Twin(
            "torchvision",
            build=lambda a: with_kernel(Inception(*flat(a)), a),
            weights=lambda a: rows(inception.inception_v1(**a.passed()), V1),
        )
    ],
    holds=[exercised(conv="others' units: the contracts above")],
    invalid=[(dict(in_channels=0), "in_channels"), (dict(kernel_size=4), "kernel_size")],
    trains_differently=lambda a: True,
)


def with_kernel(block, a):
    """The 5x5 convolution of the paper in place of torchvision's 3x3."""
    if a.kernel_size == 5:
        block.branch3[1] = BasicConv2d(a.five[0], a.five[1], kernel_size=5, padding=2)
    return block


def test_no_branches_are_an_error():
    with pytest.raises(ValueError, match="branches must be one module or more"):
        inception.Branches()


def test_branches_are_joined_in_order():
    x = torch.randn(2, 3, 4, 4)
    joined = inception.Branches(nn.Identity(), nn.ReLU())(x)
    assert torch.equal(joined, torch.cat([x, x.relu()], 1))


def test_the_unit_has_the_eps_of_torchvision():
    """0.001, as in TensorFlow; torch's is 0.00001."""
    ours, theirs = inception.conv_unit(2, 3, 1), BasicConv2d(2, 3, kernel_size=1)
    assert str(ours.norm) == str(theirs.bn) == str(nn.BatchNorm2d(3, eps=0.001, momentum=0.1))
    assert str(ours.conv) == str(theirs.conv)
