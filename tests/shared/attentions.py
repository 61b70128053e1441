"""Attention with weights of a seed, in float64, and torch's names of them, for several files of tests."""

from __future__ import annotations

import torch

from layers.attention import MultiHeadAttention
from layers.weights import WeightMap


def torch_weights(a):
    """One matrix for all three where the widths agree, three where they do not."""
    rows = [("output.weight", "out_proj.weight")]
    if a.key_dim == a.value_dim == a.dim:
        rows.append(("query.weight key.weight value.weight", "in_proj_weight", "qkv o i -> (qkv o) i"))
    else:
        rows += [(f"{n}.weight", f"{n[0]}_proj_weight") for n in ("query", "key", "value")]
    if a.bias:
        rows += [("output.bias", "out_proj.bias"), ("query.bias key.bias value.bias", "in_proj_bias", "qkv o -> (qkv o)")]
    return WeightMap(*rows)


def attention(**options):
    torch.manual_seed(0)
    return MultiHeadAttention(12, 4, **options).double().eval()
