from __future__ import annotations

import inspect
from functools import partial

import timm
import torch
import torchvision
from hypothesis import strategies as st
from processors import narrowest
from timm.layers import BlurPool2d as TimmBlurPool
from timm.models._efficientnet_blocks import DepthwiseSeparableConv as TimmSeparable
from timm.models._efficientnet_blocks import InvertedResidual as TimmInverted
from torch import nn
from torch.nn import functional as F
from torchvision.models.mobilenetv2 import InvertedResidual as InvertedV2
from torchvision.models.mobilenetv3 import InvertedResidual as InvertedV3
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.ops import SqueezeExcitation

from layers.convolution import BlurPool, SqueezeExcite, hard_sigmoid
from layers.residual import DepthwiseSeparable, InvertedResidual, PaddedShortcut, basic_block, bottleneck
from layers.testing import Contract, Twin, tensor
from layers.weights import WeightMap
from zoo.resnet import names

NOTHING_TO_LEARN = dict.fromkeys(("weights", "parameters_used", "per_sample_gradients"), "no parameters")


def images(a, smallest=1):
    sizes = dict(height=st.integers(smallest, 11), width=st.integers(max(smallest, narrowest()), 11))
    return dict(images=tensor("batch channels height width", channels=a.in_channels, **sizes))


def strided(a, s):
    return ("batch", a.out_channels, -(-s.height // a.stride), -(-s.width // a.stride))


NORMS = st.sampled_from([nn.BatchNorm2d, partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)])


def projection(a):
    """torchvision's shortcut, made by the net around the block."""
    if a.stride == 1 and a.in_channels == a.out_channels:
        return None
    return nn.Sequential(nn.Conv2d(a.in_channels, a.out_channels, 1, a.stride, bias=False), a.norm(a.out_channels))


def block_names(build):
    return lambda a: WeightMap(*names(build(**a.passed())))


class PaddedByHand(nn.Module):
    """Option A of the paper, written out: each pixel that stays, then zeros for the channels that come."""

    def __init__(self, a):
        super().__init__()
        self.a = a

    def forward(self, x):
        kept = F.max_pool2d(x, 1, self.a.stride)
        return torch.cat([kept, kept.new_zeros(len(x), self.a.out_channels - self.a.in_channels, *kept.shape[2:])], 1)


padded_shortcut = Contract(
    PaddedShortcut,
    arguments=dict(
        in_channels=st.integers(1, 3), out_channels=lambda a: st.integers(a.in_channels, 5), stride=st.sampled_from([1, 2, 3])
    ),
    inputs=images,
    outputs=strided,
    twins=[Twin("by hand", build=PaddedByHand)],
    invalid=[(dict(stride=0), "stride"), (dict(in_channels=6), "in_channels"), (dict(in_channels=0), "in_channels")],
    without=NOTHING_TO_LEARN,
)

BLOCK = dict(
    in_channels=st.sampled_from([3, 4]),
    out_channels=st.sampled_from([4, 8]),
    stride=st.sampled_from([1, 2]),
    norm=NORMS,
)
INVALID = [(dict(in_channels=0), "in_channels"), (dict(out_channels=0), "out_channels"), (dict(stride=0), "stride")]

basic = Contract(
    basic_block,
    arguments=BLOCK,
    inputs=images,
    outputs=strided,
    twins=[
        Twin(
            "torchvision",
            build=lambda a: torchvision.models.resnet.BasicBlock(
                a.in_channels, a.out_channels, a.stride, projection(a), norm_layer=a.norm
            ),
            weights=block_names(basic_block),
        )
    ],
    invalid=INVALID,
    trains_differently=lambda a: True,
    name="basic_block",
)

padded = Contract(
    partial(basic_block, shortcut=PaddedShortcut),
    arguments={**BLOCK, "out_channels": lambda a: st.sampled_from([a.in_channels, 8])},
    inputs=images,
    outputs=strided,
    twins=[
        Twin(
            "torchvision",
            build=lambda a: torchvision.models.resnet.BasicBlock(
                a.in_channels, a.out_channels, a.stride, PaddedByHand(a), norm_layer=a.norm
            ),
            weights=block_names(partial(basic_block, shortcut=PaddedShortcut)),
        )
    ],
    invalid=INVALID,
    trains_differently=lambda a: True,
    name="basic_block with PaddedShortcut",
)

deep = Contract(
    bottleneck,
    arguments=dict(
        **BLOCK,
        groups=st.sampled_from([1, 2]),
        _width=st.integers(1, 3),
        hidden_dim=lambda a: a.groups * a._width,
    ),
    inputs=images,
    outputs=strided,
    twins=[
        Twin(
            "torchvision",
            build=lambda a: torchvision.models.resnet.Bottleneck(
                a.in_channels, a.out_channels // 4, a.stride, projection(a),
                groups=a.groups, base_width=64 * a._width // (a.out_channels // 4), norm_layer=a.norm,
            ),
            weights=block_names(bottleneck),
        )
    ],
    invalid=[*INVALID, (dict(hidden_dim=0), "hidden_dim"), (dict(hidden_dim=3, groups=2), "groups")],
    trains_differently=lambda a: True,
)  # fmt: skip

GATED = dict(
    in_channels=st.sampled_from([4, 16]),
    out_channels=16,
    stride=st.sampled_from([1, 2]),
    gate=lambda a: st.sampled_from([None, gated]),
    blur=lambda a: st.sampled_from([None, BlurPool]),
    norm=nn.BatchNorm2d,
)


def gated(channels):
    return SqueezeExcite(channels, 8)


def timms(kind):
    """timm's block with the same parts: its `se` squeezes to 8 channels at least, its anti-aliasing blurs after the 3x3."""
    return lambda a: kind(
        a.in_channels, a.out_channels // kind.expansion, a.stride, projection(a),
        attn_layer=None if a.gate is None else "se", aa_layer=None if a.blur is None else TimmBlurPool,
    )  # fmt: skip


basic_of_timm = Contract(
    basic_block,
    arguments=GATED,
    inputs=lambda a: images(a, 2),
    outputs=strided,
    twins=[Twin("timm", build=timms(timm.models.resnet.BasicBlock), weights=block_names(basic_block))],
    invalid=INVALID,
    trains_differently=lambda a: True,
    name="basic_block, gated and blurred",
)

deep_of_timm = Contract(
    bottleneck,
    arguments=GATED,
    inputs=lambda a: images(a, 2),
    outputs=strided,
    twins=[Twin("timm", build=timms(timm.models.resnet.Bottleneck), weights=block_names(bottleneck))],
    invalid=INVALID,
    trains_differently=lambda a: True,
    name="bottleneck, gated and blurred",
)

blur_pool = Contract(
    BlurPool,
    defaults=dict(stride=(2, "timm's BlurPool2d")),
    arguments=dict(channels=st.integers(1, 4), stride=st.sampled_from([1, 2, 3])),
    inputs=lambda a: dict(
        images=tensor(
            "batch channels height width",
            channels=a.channels,
            height=st.integers(2, 11),
            width=st.integers(max(2, narrowest()), 11),
        )
    ),
    outputs=lambda a, s: ("batch", a.channels, (s.height - 1) // a.stride + 1, (s.width - 1) // a.stride + 1),
    twins=[
        Twin(
            "timm",
            build=lambda a: TimmBlurPool(a.channels, stride=a.stride) if a.stride == 2 else ByHand(a),
            call=lambda m, i: m.to(i["images"].dtype)(i["images"]),  # its kernel is a buffer
        )
    ],
    invalid=[(dict(channels=0), "channels"), (dict(stride=0), "stride")],
    without=NOTHING_TO_LEARN,
)


class ByHand(nn.Module):
    """timm pads for strides of 2 only."""

    def __init__(self, a):
        super().__init__()
        self.stride = a.stride

    def forward(self, x):
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        x = (x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]) / 4
        x = (x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]) / 4
        return x[..., :: self.stride, :: self.stride]


def exact(model):
    """torch 2.6 multiplies the gradients of a hard sigmoid by a sixth in float32, whatever the dtype."""
    for module in model.modules():
        if isinstance(module, nn.Hardsigmoid):
            module.forward = lambda x: (x + 3).clamp(0, 6) / 6
    return model


squeeze_excite = Contract(
    SqueezeExcite,
    arguments=dict(channels=st.integers(1, 4), hidden_dim=st.integers(5, 8), gate=st.sampled_from([torch.sigmoid, hard_sigmoid])),
    inputs=lambda a: dict(images=tensor("batch channels height width", channels=a.channels)),
    outputs=lambda a, s: ("batch", a.channels, s.height, s.width),
    twins=[
        Twin(
            "torchvision",
            build=lambda a: exact(
                SqueezeExcitation(
                    a.channels, a.hidden_dim, scale_activation=nn.Sigmoid if a.gate is torch.sigmoid else nn.Hardsigmoid
                )
            ),
            weights=WeightMap(("down", "fc1"), ("up", "fc2")),
        )
    ],
    invalid=[(dict(channels=0), "channels"), (dict(hidden_dim=0), "hidden_dim")],
)


def unit(ours, theirs):
    return [(f"{ours}.conv", f"{theirs}.0"), (f"{ours}.norm", f"{theirs}.1")]


def names_v2(a):
    n = int(a._ratio > 1)
    rows = unit("expand", "conv.0") if n else []
    return WeightMap(*rows, *unit("depthwise", f"conv.{n}"), ("project.conv", f"conv.{n + 1}"), ("project.norm", f"conv.{n + 2}"))


TIMM_INVERTED = WeightMap(
    ("expand.conv", "conv_pw"), ("expand.norm", "bn1"), ("depthwise.conv", "conv_dw"), ("depthwise.norm", "bn2"),
    ("project.conv", "conv_pwl"), ("project.norm", "bn3"),
)  # fmt: skip

inverted_v2 = Contract(
    InvertedResidual,
    arguments=dict(
        in_channels=st.sampled_from([2, 3]),
        # a shortcut more often than none
        out_channels=lambda a: st.sampled_from([a.in_channels, a.in_channels, 5 - a.in_channels]),
        stride=st.sampled_from([1, 1, 2]),
        _ratio=st.sampled_from([1, 2, 4]),
        hidden_dim=lambda a: a.in_channels * a._ratio,
        norm=NORMS,
    ),
    inputs=images,
    outputs=strided,
    twins=[
        Twin(
            "torchvision",
            build=lambda a: InvertedV2(a.in_channels, a.out_channels, a.stride, a._ratio, norm_layer=a.norm),
            weights=names_v2,
        )
    ],
    invalid=[*INVALID, (dict(hidden_dim=0), "hidden_dim")],
    trains_differently=lambda a: True,
    name="InvertedResidual of MobileNet v2",
)

inverted_of_timm = Contract(
    InvertedResidual,
    defaults=dict(kernel_size=(3, "Sandler et al., 2018, arXiv 1801.04381, table 1")),
    arguments=dict(
        in_channels=st.sampled_from([8, 16]), out_channels=st.sampled_from([8, 16]), stride=st.sampled_from([1, 2]),
        kernel_size=st.sampled_from([3, 5]), hidden_dim=lambda a: 2 * a.in_channels,
    ),
    inputs=images,
    outputs=strided,
    twins=[
        Twin(
            "timm",
            build=lambda a: TimmInverted(
                a.in_channels, a.out_channels, a.kernel_size, a.stride, exp_ratio=2, act_layer=nn.ReLU6
            ),
            weights=TIMM_INVERTED,
        )
    ],
    invalid=INVALID,
    trains_differently=lambda a: True,
    name="InvertedResidual of timm",
)  # fmt: skip


def squeezed(channels):
    return SqueezeExcite(channels, 8, gate=hard_sigmoid)


def names_v3(a):
    n = int(a.hidden_dim != a.in_channels)
    rows = unit("expand", "block.0") if n else []
    gate = [("gate.down", f"block.{n + 1}.fc1"), ("gate.up", f"block.{n + 1}.fc2")] if a.gate else []
    return WeightMap(*rows, *unit("depthwise", f"block.{n}"), *gate, *unit("project", f"block.{n + 1 + bool(gate)}"))


def config_v3(a):
    activation = "HS" if a.activation is nn.Hardswish else "RE"
    return InvertedResidualConfig(
        a.in_channels, a.kernel_size, a.hidden_dim, a.out_channels, bool(a.gate), activation, a.stride, 1, 1.0
    )


inverted_v3 = Contract(
    InvertedResidual,
    arguments=dict(
        in_channels=st.sampled_from([8, 16]),
        out_channels=st.sampled_from([8, 16]),
        stride=st.sampled_from([1, 2]),
        hidden_dim=lambda a: st.sampled_from([a.in_channels, 32]),
        kernel_size=st.sampled_from([3, 5]),
        gate=st.sampled_from([None, squeezed]),
        norm=NORMS,
        activation=st.sampled_from([nn.ReLU, nn.Hardswish]),
    ),
    inputs=images,
    outputs=strided,
    twins=[Twin("torchvision", build=lambda a: exact(InvertedV3(config_v3(a), a.norm)), weights=names_v3)],
    invalid=[(dict(kernel_size=4), "kernel_size")],
    trains_differently=lambda a: True,
    name="InvertedResidual of MobileNet v3",
)

depthwise_separable = Contract(
    DepthwiseSeparable,
    arguments=dict(
        in_channels=st.sampled_from([3, 4]),
        out_channels=st.sampled_from([5, 6]),
        stride=st.sampled_from([1, 2]),
        norm=NORMS,
        activation=st.sampled_from([nn.ReLU6, nn.SiLU]),
    ),
    inputs=images,
    outputs=strided,
    twins=[
        Twin(
            "timm",
            build=lambda a: TimmSeparable(
                a.in_channels,
                a.out_channels,
                stride=a.stride,
                pw_act=True,
                noskip=True,
                act_layer=a.activation,
                norm_layer=a.norm,
            ),
            weights=WeightMap(
                ("depthwise.conv", "conv_dw"), ("depthwise.norm", "bn1"), ("pointwise.conv", "conv_pw"), ("pointwise.norm", "bn2")
            ),
        )
    ],
    invalid=INVALID,
    trains_differently=lambda a: True,
)


def test_the_last_unit_of_a_block_has_no_activation_and_the_sum_has():
    for block in (basic_block(4, 8, stride=2), bottleneck(4, 8, stride=2)):
        assert isinstance(block.body[-1].activation, nn.Identity)
        assert isinstance(block.shortcut.activation, nn.Identity)
        assert str(block.activation) == "ReLU()"
    assert inspect.signature(bottleneck).parameters["groups"].default == 1
    assert bottleneck(4, 32).body[0].conv.out_channels == 32 // torchvision.models.resnet.Bottleneck.expansion


def test_inverted_residuals_end_without_an_activation_and_use_relu6():
    """Sandler et al., sections 3.1 and 5: linear bottlenecks, ReLU6 in between."""
    block = InvertedResidual(4, 4, hidden_dim=8)
    assert [str(unit.activation) for unit in (block.expand, block.depthwise, block.project)] == [
        "ReLU6()",
        "ReLU6()",
        "Identity()",
    ]
    separable = DepthwiseSeparable(4, 4)
    assert [str(unit.activation) for unit in (separable.depthwise, separable.pointwise)] == ["ReLU6()", "ReLU6()"]
