from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torchvision.ops import Conv2dNormActivation

from layers.convolution import ConvNormAct, ConvStack, fold_norms
from layers.testing import Contract, Twin, part, shift_equivariant, tensor
from layers.weights import WeightMap


def other_than(n):
    return st.integers(1, 5).filter(lambda m: m != n)


def images(a):
    sizes = dict(height=st.integers(7, 11), width=st.integers(7, 11))
    return dict(images=tensor("batch channels height width", channels=a.in_channels, **sizes))


def padding(a):
    return a.kernel_size // 2 if a.padding is None else a.padding


def out(a, n):
    return (n + 2 * padding(a) - a.kernel_size) // a.stride + 1


def in_sequence(a):
    bias = a.norm is None if a.bias is None else a.bias
    conv = nn.Conv2d(a.in_channels, a.out_channels, a.kernel_size, a.stride, padding(a), groups=a.groups, bias=bias)
    norm = [] if a.norm is None else [a.norm(a.out_channels)]
    return nn.Sequential(conv, *norm, *([] if a.activation is None else [a.activation()]))


def border(a):
    """Output positions whose window touches the padding or what roll() brought in from the other end."""
    return -(-(padding(a) + a.stride + a.kernel_size) // a.stride)


conv_norm_act = Contract(
    ConvNormAct,
    arguments=dict(
        groups=st.sampled_from([1, 1, 2, 3]),
        _per_group=st.permutations([1, 2, 3]),
        in_channels=lambda a: a.groups * a._per_group[0],
        out_channels=lambda a: a.groups * a._per_group[1],
        kernel_size=st.sampled_from([1, 3, 5]),
        stride=st.sampled_from([1, 2]),
        padding=st.sampled_from([None, 0, 1]),
        bias=st.sampled_from([None, True, False]),
        norm=st.sampled_from([nn.BatchNorm2d, None]),
        activation=st.sampled_from([nn.ReLU, nn.Hardswish, nn.SiLU, None]),
    ),
    inputs=images,
    outputs=lambda a, s: ("batch", a.out_channels, out(a, s.height), out(a, s.width)),
    twins=[
        Twin("torch", build=in_sequence, weights=WeightMap(("conv", "0"), ("norm", "1"))),
        Twin(
            "torchvision",
            build=lambda a: Conv2dNormActivation(
                a.in_channels, a.out_channels, a.kernel_size, a.stride, a.padding, a.groups, a.norm, a.activation,
                inplace=None, bias=a.bias,
            ),
            weights=WeightMap(("conv", "0"), ("norm", "1")),
        ),
    ],
    holds=[
        shift_equivariant("images", "height", 2, lambda a: a.stride, border),
        shift_equivariant("images", "width", 3, lambda a: a.stride, border),
    ],
    invalid=[
        (dict(in_channels=0), "in_channels"),
        (dict(out_channels=-1), "out_channels"),
        (dict(kernel_size=0), "kernel_size"),
        (dict(kernel_size=4, padding=None), "kernel_size"),
        (dict(kernel_size=(3, 2), padding=None), "kernel_size"),
        (dict(stride=0), "stride"),
        (dict(padding=-1), "padding"),
        (dict(groups=0), "groups"),
        (dict(groups=2, in_channels=3), "groups"),
    ],
    trains_differently=lambda a: a.norm is not None,
)  # fmt: skip


def stack_in_sequence(a):
    layers = []
    for i in range(a.depth):
        layers.append(nn.Conv2d(a.in_channels if i == 0 else a.out_channels, a.out_channels, 3, padding=1))
        layers += [nn.BatchNorm2d(a.out_channels)] * (a.norm is not None) + [nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


def stack_weights(a):
    step = 2 + (a.norm is not None)
    rows = [(f"convs.{i}.conv", f"{i * step}") for i in range(a.depth)]
    return WeightMap(*rows, *((f"convs.{i}.norm", f"{i * step + 1}") for i in range(a.depth) if a.norm is not None))


conv_stack = Contract(
    ConvStack,
    arguments=dict(
        in_channels=st.integers(1, 4),
        out_channels=lambda a: other_than(a.in_channels),
        depth=st.integers(1, 3),
        pool=part(nn.MaxPool2d, kernel_size=2),
        norm=st.sampled_from([nn.BatchNorm2d, None]),
        bias=True,
    ),
    inputs=images,
    outputs=lambda a, s: ("batch", a.out_channels, s.height // 2, s.width // 2),
    twins=[Twin("torch", build=stack_in_sequence, weights=stack_weights)],
    invalid=[(dict(depth=0), "depth"), (dict(in_channels=0), "in_channels")],
    trains_differently=lambda a: a.norm is not None,
)


def test_rectangular_kernels_keep_the_size():
    images = torch.randn(1, 2, 9, 7)
    assert ConvNormAct(2, 3, (1, 7))(images).shape == (1, 3, 9, 7)


def test_folded_norms_compute_the_same():
    model = nn.Sequential(ConvNormAct(3, 4, bias=True), ConvStack(4, 5, 2)).double()
    images = torch.randn(16, 3, 9, 9, dtype=torch.float64)
    model(images)  # move the running statistics off their start
    with pytest.raises(ValueError, match="eval mode"):
        fold_norms(model)
    expected = model.eval()(images)
    fold_norms(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    torch.testing.assert_close(model(images), expected, rtol=1e-12, atol=1e-12)
