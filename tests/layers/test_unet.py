from __future__ import annotations

import pytest
import torch
from diffusion_twins import of_diffusers
from hypothesis import strategies as st
from processors import narrowest

from layers.testing import Contract, Twin, initial_distribution, permutation_equivariant, tensor
from layers.unet import Downsample, PixelAttention, TimeResidual, Upsample
from layers.weights import WeightMap

RESNET = [(f"{part}{n}", f"{part}{n}") for part in ("norm", "conv") for n in (1, 2)]
RESNET += [("time", "time_emb_proj"), ("shortcut", "conv_shortcut")]
ATTENTION = [("norm", "group_norm"), ("attention.output", "to_out.0")]
ATTENTION += [(f"attention.{name}", f"to_{name[0]}") for name in ("query", "key", "value")]


def zero(a, p):
    return 0, 0


def images(channels, **sizes):
    width = dict(width=st.integers(narrowest(), 6))
    return tensor("batch channels height width", channels=channels, **width | sizes)


def resnet(a):
    return of_diffusers("resnet").ResnetBlock2D(
        in_channels=a.in_channels, out_channels=a.out_channels, temb_channels=a.time_dim, groups=a.groups, eps=a.eps,
        dropout=a.dropout,
    )  # fmt: skip


RESIDUAL = dict(
    groups=st.integers(1, 2),
    in_channels=lambda a: a.groups * 2,
    out_channels=lambda a: st.sampled_from([a.in_channels, 3 * a.groups]),
    time_dim=st.sampled_from([5, 7, None]),
    eps=st.sampled_from([1e-6, 1e-2]),
)


def timed(a):
    time = {} if a.time_dim is None else dict(time=tensor("batch time_dim", time_dim=a.time_dim))
    return dict(images=images(a.in_channels), **time)


def call_resnet(module, inputs):
    return module(inputs["images"], inputs.get("time"))


residual = Contract(
    TimeResidual,
    defaults=dict(groups=(32, "diffusers' ResnetBlock2D"), eps=(1e-6, "diffusers' ResnetBlock2D")),
    arguments=RESIDUAL | dict(dropout=st.sampled_from([0.0, 0.4])),
    inputs=timed,
    outputs=lambda a, s: ("batch", a.out_channels, s.height, s.width),
    twins=[Twin("diffusers", build=resnet, weights=WeightMap(*RESNET), call=call_resnet)],
    trains_differently=lambda a: a.dropout > 0,
    stochastic=lambda a: a.dropout > 0,
    holds=[initial_distribution(conv2__weight=zero, conv2__bias=zero)],
    invalid=[
        (dict(in_channels=0), "channels"),
        (dict(out_channels=7, groups=2), "channels"),
        (dict(groups=0), "groups"),
        (dict(time_dim=0), "time_dim"),
        (dict(dropout=1.0), "dropout"),
    ],
)


def attention(a, context_dim=None):
    return of_diffusers("attention_processor").Attention(
        a.channels, context_dim, heads=a.heads, dim_head=a.channels // a.heads, norm_num_groups=a.groups, eps=a.eps,
        residual_connection=True, bias=True, upcast_softmax=True,
    )  # fmt: skip


PIXELS = dict(
    groups=st.integers(1, 2),
    heads=st.integers(1, 3),
    channels=lambda a: 2 * a.groups * a.heads,
    eps=st.sampled_from([1e-6, 1e-2]),
)
REFUSED = [(dict(channels=0), "channels"), (dict(groups=5), "channels"), (dict(groups=0), "groups"), (dict(heads=0), "heads")]

own = Contract(
    PixelAttention,
    defaults=dict(groups=(32, "diffusers' AutoencoderKL"), eps=(1e-6, "diffusers' AutoencoderKL")),
    arguments=PIXELS,
    inputs=lambda a: dict(images=images(a.channels)),
    outputs=lambda a, s: ("batch", a.channels, s.height, s.width),
    twins=[Twin("diffusers", build=attention, weights=WeightMap(*ATTENTION))],
    holds=[
        permutation_equivariant("images", "height", 2),
        initial_distribution(attention__output__weight=zero, attention__output__bias=zero),
    ],
    invalid=[*REFUSED, (dict(context_dim=0), "context_dim")],
)

cross = Contract(
    PixelAttention,
    arguments=PIXELS | dict(context_dim=st.integers(5, 7)),
    inputs=lambda a: dict(images=images(a.channels), context=tensor("batch keys context_dim", context_dim=a.context_dim)),
    outputs=lambda a, s: ("batch", a.channels, s.height, s.width),
    twins=[
        Twin(
            "diffusers",
            build=lambda a: attention(a, a.context_dim),
            weights=WeightMap(*ATTENTION),
            call=lambda m, i: m(i["images"], encoder_hidden_states=i["context"]),
        )
    ],
    holds=[initial_distribution(attention__output__weight=zero, attention__output__bias=zero)],
    invalid=REFUSED,
    name="PixelAttention to a context",
)


CONV = WeightMap(("conv", "conv"))

half = Contract(
    Downsample,
    arguments=dict(channels=st.integers(1, 4), pad_end=st.booleans()),
    inputs=lambda a: dict(images=images(a.channels, height=st.integers(2, 7), width=st.integers(max(2, narrowest()), 7))),
    outputs=lambda a, s: ("batch", a.channels, *(n // 2 if a.pad_end else (n + 1) // 2 for n in (s.height, s.width))),
    twins=[
        Twin(
            "diffusers",
            build=lambda a: of_diffusers("downsampling").Downsample2D(
                a.channels, use_conv=True, padding=0 if a.pad_end else 1, name="op"
            ),
            weights=CONV,
        )
    ],
    invalid=[(dict(channels=0), "channels")],
)

twice = Contract(
    Upsample,
    arguments=dict(channels=st.integers(1, 4)),
    inputs=lambda a: dict(images=images(a.channels)),
    outputs=lambda a, s: ("batch", a.channels, 2 * s.height, 2 * s.width),
    twins=[Twin("diffusers", build=lambda a: of_diffusers("upsampling").Upsample2D(a.channels, use_conv=True), weights=CONV)],
    invalid=[(dict(channels=0), "channels")],
)


def test_what_is_fresh_is_the_shortcut():
    x, time = torch.randn(2, 4, 3, 5), torch.randn(2, 6)
    assert torch.equal(TimeResidual(4, 4, 6, groups=2)(x, time), x)
    assert torch.equal(PixelAttention(4, groups=2)(x), x)


def test_a_residual_is_told_a_time_where_it_was_built_for_one():
    x, time = torch.randn(2, 4, 3, 3), torch.randn(2, 5)
    with pytest.raises(ValueError, match=r"time must be given, of 5 features, as time_dim says, got None"):
        TimeResidual(4, 4, 5, groups=2)(x)
    with pytest.raises(ValueError, match=r"time must be None, as time_dim says, got \(2, 5\)"):
        TimeResidual(4, 4, groups=2)(x, time)
