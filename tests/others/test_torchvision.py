"""Blocks of torchvision."""

from __future__ import annotations

from functools import partial

from findings import Finding
from hypothesis import strategies as st
from torch import nn
from torchvision.models.convnext import CNBlock
from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig
from torchvision.models.resnet import BasicBlock
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2
from torchvision.models.vision_transformer import EncoderBlock
from torchvision.ops import MLP, Conv2dNormActivation, DeformConv2d, FrozenBatchNorm2d, SqueezeExcitation

from layers.testing import Contract, permutation_equivariant, tensor

LIBRARY = "torchvision"
IN_PLACE = dict(hooks="torch.nn.Module.register_full_backward_hook: what changes its input in place is an error")


def images(channels, least=4):
    return tensor("b channels y x", channels=channels, y=st.integers(least, 8), x=st.integers(least, 8))


squeeze_excitation = Contract(
    SqueezeExcitation,
    arguments=dict(
        input_channels=st.integers(1, 3), squeeze_channels=st.integers(4, 5),
        activation=st.sampled_from([nn.ReLU, nn.SiLU]), scale_activation=st.sampled_from([nn.Sigmoid, nn.Hardsigmoid]),
    ),
    inputs=lambda a: dict(input=images(a.input_channels)),
    outputs=lambda a, s: ("b", a.input_channels, s.y, s.x),
    foreign=True,
    without=dict(second_derivatives="torch has none of Hardsigmoid, and says so"),
)  # fmt: skip

conv_norm_activation = Contract(
    Conv2dNormActivation,
    arguments=dict(
        in_channels=4, out_channels=st.sampled_from([2, 4]), kernel_size=st.sampled_from([1, 3]), stride=st.sampled_from([1, 2]),
        groups=st.sampled_from([1, 2]), norm_layer=st.sampled_from([nn.BatchNorm2d, None]),
        activation_layer=st.sampled_from([nn.ReLU, nn.Hardswish, None]), bias=st.sampled_from([None, True]),
        inplace=st.sampled_from([None, True]),
    ),
    inputs=lambda a: dict(input=images(4)),
    outputs=lambda a, s: ("b", a.out_channels, -(-s.y // a.stride), -(-s.x // a.stride)),
    call=lambda module, inputs: module(inputs["input"]),
    trains_differently=lambda a: a.norm_layer is not None,
    foreign=True,
    without=IN_PLACE,
)  # fmt: skip

mlp = Contract(
    MLP,
    arguments=dict(
        in_channels=st.integers(2, 4), hidden_channels=st.sampled_from([[3], [5, 4]]),
        norm_layer=st.sampled_from([None, nn.LayerNorm]),
        bias=st.booleans(), activation_layer=st.sampled_from([nn.ReLU, nn.GELU]),
    ),
    inputs=lambda a: dict(input=tensor("b d", d=a.in_channels)),
    outputs=lambda a, s: ("b", a.hidden_channels[-1]),
    foreign=True,
)  # fmt: skip

frozen_norm = Contract(
    FrozenBatchNorm2d,
    arguments=dict(num_features=st.integers(1, 4), eps=st.sampled_from([1e-5, 0.1])),
    inputs=lambda a: dict(x=images(a.num_features)),
    outputs=lambda a, s: ("b", a.num_features, s.y, s.x),
    foreign=True,
)

deformable = Contract(
    DeformConv2d,
    arguments=dict(in_channels=2, out_channels=st.integers(3, 4), kernel_size=3, padding=1, bias=st.booleans()),
    inputs=lambda a: dict(input=images(2, 5), offset=tensor("b offsets y x", offsets=18), mask=tensor("b places y x", places=9)),
    outputs=lambda a, s: ("b", a.out_channels, s.y, s.x),
    foreign=True,
    without=dict(
        second_derivatives="torchvision has none, and says so",
        per_sample_gradients="its C++ function has no rule for vmap, and says so",
    ),
)

basic_block = Contract(
    BasicBlock,
    arguments=dict(inplanes=3, planes=3, norm_layer=st.sampled_from([None, nn.Identity, partial(nn.GroupNorm, 1)])),
    inputs=lambda a: dict(x=images(3)),
    outputs=lambda a, s: ("b", 3, s.y, s.x),
    trains_differently=lambda a: a.norm_layer is None,
    foreign=True,
    without=IN_PLACE,
)


def inverted(kernel, expanded, out, squeeze, activation, stride):
    config = InvertedResidualConfig(8, kernel, expanded, out, squeeze, activation, stride, 1, 1.0)
    return InvertedResidual(config, nn.BatchNorm2d)


inverted_residual = Contract(
    inverted,
    arguments=dict(
        kernel=st.sampled_from([3, 5]), expanded=st.sampled_from([8, 16]), out=st.sampled_from([8, 16]), squeeze=st.booleans(),
        activation=st.sampled_from(["RE", "HS"]), stride=st.sampled_from([1, 2]),
    ),
    inputs=lambda a: dict(input=images(8)),
    outputs=lambda a, s: ("b", a.out, -(-s.y // a.stride), -(-s.x // a.stride)),
    trains_differently=lambda a: True,
    foreign=True,
    without=IN_PLACE | dict(second_derivatives="torch has none of Hardsigmoid, and says so"),
    name="InvertedResidual",
)  # fmt: skip

WINDOWS = dict(
    dim=st.sampled_from([4, 8]), window_size=st.sampled_from([[2, 2], [3, 3]]),
    shift_size=lambda a: st.sampled_from([[0, 0], [1, 1], [a.window_size[0] // 2] * 2]), num_heads=st.sampled_from([1, 2]),
    qkv_bias=st.booleans(),
)  # fmt: skip

window_attention = Contract(
    ShiftedWindowAttention,
    arguments=WINDOWS | dict(proj_bias=st.booleans()),
    inputs=lambda a: dict(x=tensor("b y x dim", dim=a.dim, y=st.integers(3, 7), x=st.integers(3, 7))),
    outputs=lambda a, s: ("b", s.y, s.x, a.dim),
    foreign=True,
)

window_attention_v2 = Contract(
    ShiftedWindowAttentionV2,
    arguments=WINDOWS,
    inputs=lambda a: dict(x=tensor("b y x dim", dim=a.dim, y=st.integers(3, 7), x=st.integers(3, 7))),
    outputs=lambda a, s: ("b", s.y, s.x, a.dim),
    foreign=True,
    without=IN_PLACE | dict(second_derivatives="it normalises the zeros that it pads with, where a norm has none"),
)

encoder_block = Contract(
    EncoderBlock,
    arguments=dict(
        num_heads=st.sampled_from([1, 2]), hidden_dim=4, mlp_dim=st.integers(5, 6), dropout=0.0, attention_dropout=0.0
    ),
    inputs=lambda a: dict(input=tensor("b n d", d=4)),
    outputs=lambda a, s: ("b", "n", 4),
    holds=[permutation_equivariant("input", "n", 1)],
    foreign=True,
    without=dict(second_derivatives="torch has none of its fused attention, and says so"),
)

convnext_block = Contract(
    CNBlock,
    arguments=dict(dim=st.integers(4, 6), layer_scale=st.sampled_from([1e-6, 1.0]), stochastic_depth_prob=0.0),
    inputs=lambda a: dict(input=images(a.dim)),
    outputs=lambda a, s: ("b", a.dim, s.y, s.x),
    foreign=True,
    without=IN_PLACE,
)

FOUND = [
    Finding(
        "DeformConv2d",
        "forward_derivatives",
        "all",
        "Derivatives in forward mode are zero, without a word: its C++ function has no rule for them.",
        """
import torch
from torchvision.ops import deform_conv2d

x, offset, weight = torch.randn(1, 2, 5, 5), torch.randn(1, 18, 5, 5), torch.randn(3, 2, 3, 3)
_, tangent = torch.func.jvp(lambda w: deform_conv2d(x, offset, w, padding=1), (weight,), (torch.ones_like(weight),))
assert not tangent.any()
""",
        seen=("pytorch/functorch#207",),
        cf=True,
    ),
]
