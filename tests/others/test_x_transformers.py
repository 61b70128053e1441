"""Blocks of x-transformers."""

from __future__ import annotations

import found_x_transformers
from hypothesis import strategies as st
from x_transformers.attend import Intermediates
from x_transformers.x_transformers import (
    Attention,
    Decoder,
    Encoder,
    FeedForward,
    GRUGating,
    LayerIntermediates,
    RMSNorm,
    ScaleNorm,
    TransformerWrapper,
)  # fmt: skip

from layers.testing import Contract, causal, padding_invariant, permutation_equivariant, streaming, tensor, tokens

LIBRARY = "x-transformers"
FOUND = found_x_transformers.FOUND
SOFTMAX = "Attend.__init__ takes the softmax in float32 (attend.py, attn_fn)"
LEFT_OUT = dict(
    trace="seconds each; not what is looked for here",
    hooks="what `Attend` gave, and a hook has kept, is completed by `Attention`: no tensor of it changes",
)

ATTENTION = dict(
    plain={},
    flash=dict(flash=True),
    pre_talking_heads=dict(pre_talking_heads=True),
    post_talking_heads=dict(post_talking_heads=True),
    pre_scale_post_talking_heads=dict(pre_scale_post_talking_heads=True),
    head_scale=dict(head_scale=True),
    num_mem_kv=dict(num_mem_kv=2),
    on_attn=dict(on_attn=True),
    gate_values=dict(gate_values=True),
    gate_value_heads=dict(gate_value_heads=True),
    output_gate=dict(output_gate=True),
    qk_norm=dict(qk_norm=True),
    qk_rmsnorm=dict(qk_rmsnorm=True),
    value_rmsnorm=dict(value_rmsnorm=True),
    l2_distance=dict(l2_distance=True),
    sigmoid=dict(sigmoid=True),
    cog_signed=dict(cog_signed=True),
    one_kv_head=dict(one_kv_head=True),
    add_zero_kv=dict(add_zero_kv=True),
    head_learned_sink=dict(head_learned_sink=True),
    data_dependent_alibi=dict(data_dependent_alibi=True),
    data_dependent_alibi_per_row=dict(data_dependent_alibi=True, data_dependent_alibi_per_row=True),
    use_rel_proj_pos_bias=dict(use_rel_proj_pos_bias=True),
    use_cope=dict(use_cope=True),
    softclamp_logits=dict(softclamp_logits=True),
    orthog_projected_values=dict(orthog_projected_values=True),
    laser=dict(laser=True),
    inverted_attention=dict(inverted_attention=True),
    max_attend_past=dict(max_attend_past=1),
    latent_kv=dict(use_latent_kv=True, dim_latent_kv=4),
)
"""One option of `Attention` at a time."""


def attention(dim, heads, option):
    return Attention(dim, dim_head=4, heads=heads, causal=True, **ATTENTION[option])


def attend(module, inputs):
    """Output and the keys and values so far, in the form that a next call takes."""
    mask, cache = inputs.get("mask"), inputs.get("cache")
    mask = None if mask is None else mask[:, 0, 0]
    output, state = module(inputs["x"], mask=mask, cache=cache, return_intermediates=True)
    return output, Intermediates(cached_kv=state.cached_kv)


attention_of_x = Contract(
    attention,
    arguments=dict(dim=st.sampled_from([6, 8]), heads=2, option=st.sampled_from(list(ATTENTION))),
    inputs=lambda a: dict(x=tensor("b n dim", dim=a.dim, n=st.integers(3, 5))),
    outputs=lambda a, s: [("b", "n", a.dim), ...],
    call=attend,
    holds=[causal("x", "n", 1), padding_invariant("x", "n", 1), streaming("x", "n", 1, state="cache")],
    foreign=True,
    single_precision=SOFTMAX,
    without=LEFT_OUT,
    name="Attention",
)

selective = Contract(
    Attention,
    arguments=dict(dim=st.sampled_from([6, 8]), dim_head=4, heads=2, causal=True, selective=True),
    inputs=lambda a: dict(x=tensor("b n dim", dim=a.dim, n=st.integers(3, 5))),
    outputs=lambda a, s: ("b", "n", a.dim),
    holds=[causal("x", "n", 1)],
    foreign=True,
    single_precision=SOFTMAX,
    without=LEFT_OUT,
    name="Attention, selective",
)

DECODERS = dict(
    plain={},
    rotary_pos_emb=dict(rotary_pos_emb=True),
    rotary_xpos=dict(rotary_xpos=True),
    alibi_pos_bias=dict(alibi_pos_bias=True),
    shift_tokens=dict(shift_tokens=1),
    use_rmsnorm=dict(use_rmsnorm=True),
    use_scalenorm=dict(use_scalenorm=True),
    sandwich_norm=dict(sandwich_norm=True),
    macaron=dict(macaron=True),
    gate_residual=dict(gate_residual=True),
    num_residual_streams=dict(num_residual_streams=2),
    add_value_residual=dict(add_value_residual=True),
    attn_num_mem_kv=dict(attn_num_mem_kv=2),
    attn_kv_heads=dict(attn_kv_heads=1),
    ff_glu=dict(ff_glu=True),
    unet_skips=dict(unet_skips=True),
    reinject_input=dict(reinject_input=True),
    integrate_layers=dict(integrate_layers=True),
)
"""One option of `Decoder` at a time, over fused attention, which computes in the dtype that it is given."""


def decoder(option, scaled_sinu_pos_emb):
    layers = Decoder(dim=8, depth=2, heads=2, attn_dim_head=8, attn_flash=True, verbose=False, **DECODERS[option])
    return TransformerWrapper(num_tokens=7, max_seq_len=16, attn_layers=layers, scaled_sinu_pos_emb=scaled_sinu_pos_emb)


def decode(module, inputs):
    """Logits of new tokens after those in the cache, and the cache for a next call; `mask` says where each row begins."""
    x, cache, mask = inputs["x"], inputs.get("cache"), inputs.get("mask")
    start = None if mask is None else mask[:, 0, 0].int().argmax(1)
    logits, state = module(
        x, seq_start_pos=start, cache=cache, cache_age=x.shape[1], input_not_include_cache=True, return_intermediates=True
    )
    kept = [Intermediates(cached_kv=one.cached_kv, layer_type=one.layer_type) for one in state.attn_intermediates]
    return logits, LayerIntermediates(attn_intermediates=kept, cache_length=state.cache_length)


decoders = Contract(
    decoder,
    arguments=dict(option=st.sampled_from(list(DECODERS)), scaled_sinu_pos_emb=st.booleans()),
    inputs=lambda a: dict(x=tokens("b n", 7, n=st.integers(3, 5))),
    outputs=lambda a, s: [("b", "n", 7), ...],
    call=decode,
    holds=[causal("x", "n", 1), padding_invariant("x", "n", 1), streaming("x", "n", 1, state="cache")],
    foreign=True,
    model=True,
    without=LEFT_OUT | dict(second_derivatives="torch has none of its fused attention, and says so"),
    name="TransformerWrapper of a Decoder",
)

encoder = Contract(
    Encoder,
    arguments=dict(
        dim=8, depth=1, heads=2, attn_dim_head=4, verbose=False, use_rmsnorm=st.booleans(), pre_norm=st.booleans(),
        ff_glu=st.booleans(),
        attn_qk_norm=st.booleans(),
    ),
    inputs=lambda a: dict(x=tensor("b n d", d=8, n=st.integers(3, 5))),
    outputs=lambda a, s: ("b", "n", 8),
    call=lambda module, inputs: module(inputs["x"], mask=None if inputs.get("mask") is None else inputs["mask"][:, 0, 0]),
    holds=[padding_invariant("x", "n", 1), permutation_equivariant("x", "n", 1)],
    foreign=True,
    model=True,
    single_precision=SOFTMAX,
    without=LEFT_OUT,
)  # fmt: skip

feedforward = Contract(
    FeedForward,
    arguments=dict(
        dim=st.integers(3, 5), mult=2, glu=st.booleans(), swish=st.booleans(), post_act_ln=st.booleans(), no_bias=st.booleans(),
        relu_squared=st.booleans(),
    ),
    inputs=lambda a: dict(x=tensor("b n d", d=a.dim)),
    outputs=lambda a, s: ("b", "n", a.dim),
    foreign=True,
)  # fmt: skip

NORM = dict(
    inputs=lambda a: dict(x=tensor("b n d", d=a.dim)),
    outputs=lambda a, s: ("b", "n", a.dim),
    foreign=True,
)
rms_norm = Contract(RMSNorm, arguments=dict(dim=st.integers(3, 5), unit_offset=st.booleans()), **NORM)
scale_norm = Contract(ScaleNorm, arguments=dict(dim=st.integers(3, 5), unit_offset=st.booleans()), **NORM)

gru_gating = Contract(
    GRUGating,
    arguments=dict(dim=st.integers(3, 5), scale_residual=st.booleans()),
    inputs=lambda a: dict(x=tensor("b n d", d=a.dim), residual=tensor("b n d", d=a.dim)),
    outputs=lambda a, s: ("b", "n", a.dim),
    foreign=True,
)
