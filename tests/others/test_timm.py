"""Blocks of timm."""

from __future__ import annotations

import found_timm
from hypothesis import strategies as st
from timm.layers import (
    Attention,
    BlurPool2d,
    EcaModule,
    GlobalResponseNormMlp,
    LayerNorm2d,
    Mlp,
    PatchEmbed,
    RmsNorm,
    ScaledStdConv2d,
    SelectiveKernel,
    SEModule,
    StdConv2d,
    StdConv2dSame,
    SwiGLU,
)  # fmt: skip
from timm.layers.cbam import CbamModule
from timm.layers.gather_excite import GatherExcite
from timm.models.convnext import ConvNeXtBlock
from timm.models.swin_transformer import WindowAttention
from torch import nn

from layers.testing import Contract, permutation_equivariant, tensor

LIBRARY = "timm"
FOUND = found_timm.FOUND
IN_PLACE = dict(hooks="torch.nn.Module.register_full_backward_hook: what changes its input in place is an error")
FUSED = dict(second_derivatives="torch has none of its fused attention, and says so")


def images(channels, least=4):
    return dict(x=tensor("b channels y x", channels=channels, y=st.integers(least, 8), x=st.integers(least, 8)))


def alike(a, s):
    return ("b", a.channels, s.y, s.x)


def tokens_of(a):
    return dict(x=tensor("b n d", d=a.in_features))


STANDARDISED = dict(
    out_channels=st.sampled_from([2, 4]), kernel_size=st.sampled_from([1, 3]), stride=st.sampled_from([1, 2]),
    groups=lambda a: st.sampled_from([1, 2]), bias=st.booleans(),
)  # fmt: skip


def halved(a, s):
    return ("b", a.out_channels, -(-s.y // a.stride), -(-s.x // a.stride))


std_conv = Contract(
    StdConv2d,
    arguments=dict(in_channel=st.sampled_from([2, 4]), **STANDARDISED),
    inputs=lambda a: images(a.in_channel),
    outputs=halved,
    foreign=True,
)

std_conv_same = Contract(
    StdConv2dSame,
    arguments=dict(in_channel=st.sampled_from([2, 4]), **STANDARDISED),
    inputs=lambda a: images(a.in_channel),
    outputs=halved,
    foreign=True,
)

scaled_std_conv = Contract(
    ScaledStdConv2d,
    arguments=dict(in_channels=st.sampled_from([2, 4]), **STANDARDISED, gamma=st.sampled_from([1.0, 1.7])),
    inputs=lambda a: images(a.in_channels),
    outputs=halved,
    foreign=True,
)

squeeze_excite = Contract(
    SEModule,
    arguments=dict(
        channels=st.integers(2, 4), rd_channels=st.sampled_from([2, 5]), add_maxpool=st.booleans(), bias=st.booleans()
    ),
    inputs=lambda a: images(a.channels),
    outputs=alike,
    foreign=True,
    without=IN_PLACE,
)

eca = Contract(
    EcaModule,
    arguments=dict(channels=st.sampled_from([4, 6]), use_mlp=st.booleans()),
    inputs=lambda a: images(a.channels),
    outputs=alike,
    foreign=True,
)

cbam = Contract(
    CbamModule,
    arguments=dict(
        channels=st.sampled_from([4, 6]), rd_channels=2, spatial_kernel_size=st.sampled_from([3, 7]), mlp_bias=st.booleans()
    ),
    inputs=lambda a: images(a.channels),
    outputs=alike,
    trains_differently=lambda a: True,
    foreign=True,
    without=IN_PLACE,
)

gather_excite = Contract(
    GatherExcite,
    arguments=dict(
        channels=4,
        extent=st.sampled_from([0, 2]),
        extra_params=False,
        use_mlp=st.booleans(),
        rd_channels=2,
        add_maxpool=st.booleans(),
    ),
    inputs=lambda a: images(a.channels),
    outputs=alike,
    foreign=True,
    without=IN_PLACE,
)

selective_kernel = Contract(
    SelectiveKernel,
    arguments=dict(
        in_channels=4, out_channels=st.sampled_from([4, 8]), stride=st.sampled_from([1, 2]), split_input=st.booleans()
    ),
    inputs=lambda a: images(4),
    outputs=halved,
    trains_differently=lambda a: True,
    foreign=True,
    without=IN_PLACE,
)

layer_norm = Contract(
    LayerNorm2d,
    arguments=dict(num_channels=st.integers(3, 5), eps=st.sampled_from([1e-6, 1e-3]), affine=st.booleans()),
    inputs=lambda a: images(a.num_channels),
    outputs=lambda a, s: ("b", a.num_channels, s.y, s.x),
    foreign=True,
)

rms_norm = Contract(
    RmsNorm,
    arguments=dict(channels=st.integers(3, 5), eps=st.sampled_from([1e-6, 1e-3]), affine=st.booleans()),
    inputs=lambda a: dict(x=tensor("b n d", d=a.channels)),
    outputs=lambda a, s: ("b", "n", a.channels),
    foreign=True,
)

blur_pool = Contract(
    BlurPool2d,
    arguments=dict(channels=st.sampled_from([None, 3]), filt_size=st.sampled_from([3, 4, 5]), stride=st.sampled_from([1, 2])),
    inputs=lambda a: images(3),
    outputs=lambda a, s: ...,
    foreign=True,
)

mlp = Contract(
    Mlp,
    arguments=dict(
        in_features=st.integers(2, 4), hidden_features=st.sampled_from([None, 6]), out_features=st.sampled_from([None, 5]),
        act_layer=st.sampled_from([nn.GELU, nn.ReLU]), norm_layer=st.sampled_from([None, nn.LayerNorm]), bias=st.booleans(),
    ),
    inputs=tokens_of,
    outputs=lambda a, s: ("b", "n", a.out_features or a.in_features),
    foreign=True,
)  # fmt: skip

swiglu = Contract(
    SwiGLU,
    arguments=dict(
        in_features=st.integers(2, 4),
        hidden_features=st.sampled_from([5, 6]),
        bias=st.booleans(),
        align_to=st.sampled_from([0, 4]),
    ),
    inputs=tokens_of,
    outputs=lambda a, s: ("b", "n", a.in_features),
    foreign=True,
)

response_norm_mlp = Contract(
    GlobalResponseNormMlp,
    arguments=dict(in_features=st.integers(2, 4), hidden_features=st.sampled_from([5, 6]), bias=st.booleans()),
    inputs=lambda a: dict(x=tensor("b y x d", d=a.in_features)),
    outputs=lambda a, s: ("b", s.y, s.x, a.in_features),
    foreign=True,
)

attention = Contract(
    Attention,
    arguments=dict(
        dim=st.sampled_from([4, 8]), num_heads=st.sampled_from([1, 2]), qkv_bias=st.booleans(), qk_norm=st.booleans(),
        scale_norm=st.booleans(),
        proj_bias=st.booleans(), gated=st.booleans(), norm_layer=nn.LayerNorm,
    ),
    inputs=lambda a: dict(x=tensor("b n d", d=a.dim)),
    outputs=lambda a, s: ("b", "n", a.dim),
    holds=[permutation_equivariant("x", "n", 1)],
    foreign=True,
    without=FUSED,
)  # fmt: skip

patch_embedding = Contract(
    PatchEmbed,
    arguments=dict(
        img_size=None, patch_size=st.sampled_from([2, 3]), in_chans=st.integers(1, 3), embed_dim=st.integers(4, 5),
        bias=st.booleans(),
        norm_layer=st.sampled_from([None, nn.LayerNorm]), dynamic_img_pad=True,
    ),
    inputs=lambda a: images(a.in_chans),
    outputs=lambda a, s: ("b", -(-s.y // a.patch_size) * -(-s.x // a.patch_size), a.embed_dim),
    foreign=True,
)  # fmt: skip

window_attention = Contract(
    WindowAttention,
    arguments=dict(
        dim=st.sampled_from([4, 8]),
        num_heads=st.sampled_from([1, 2]),
        window_size=st.sampled_from([2, 3]),
        qkv_bias=st.booleans(),
    ),
    inputs=lambda a: dict(x=tensor("b n d", n=a.window_size**2, d=a.dim)),
    outputs=lambda a, s: ("b", "n", a.dim),
    foreign=True,
)

convnext_block = Contract(
    ConvNeXtBlock,
    arguments=dict(
        in_chs=4, out_chs=st.sampled_from([4, 8]), kernel_size=st.sampled_from([3, 7]), stride=st.sampled_from([1, 2]),
        conv_mlp=st.booleans(), use_grn=st.booleans(), ls_init_value=st.sampled_from([None, 1e-6]),
    ),
    inputs=lambda a: images(4),
    outputs=lambda a, s: ("b", a.out_chs, -(-s.y // a.stride), -(-s.x // a.stride)),
    foreign=True,
)  # fmt: skip
