"""Blocks of torch."""

from __future__ import annotations

import found_torch
from hypothesis import strategies as st
from torch import nn

from layers.testing import Contract, padding_invariant, permutation_equivariant, streaming, tensor, tokens
from layers.testing import mask as drawn_mask

LIBRARY = "torch"
FOUND = found_torch.FOUND
FUSED = dict(second_derivatives="torch has none of its fused attention, and says so")
SMALL = st.integers(2, 4)


linear = Contract(
    nn.Linear,
    arguments=dict(in_features=SMALL, out_features=SMALL, bias=st.booleans()),
    inputs=lambda a: dict(input=tensor("b d", d=a.in_features)),
    outputs=lambda a, s: ("b", a.out_features),
    foreign=True,
)

bilinear = Contract(
    nn.Bilinear,
    arguments=dict(in1_features=SMALL, in2_features=SMALL, out_features=SMALL, bias=st.booleans()),
    inputs=lambda a: dict(input1=tensor("b d", d=a.in1_features), input2=tensor("b e", e=a.in2_features)),
    outputs=lambda a, s: ("b", a.out_features),
    foreign=True,
)

embedding = Contract(
    nn.Embedding,
    arguments=dict(
        num_embeddings=5, embedding_dim=SMALL, padding_idx=st.sampled_from([None, 0]), max_norm=st.sampled_from([None, 0.5]),
        sparse=st.booleans(),
    ),
    inputs=lambda a: dict(input=tokens("b n", 5)),
    outputs=lambda a, s: ("b", "n", a.embedding_dim),
    foreign=True,
    without=dict(per_sample_gradients="torch has no rule for vmap over `max_norm`"),
)  # fmt: skip

embedding_bag = Contract(
    nn.EmbeddingBag,
    arguments=dict(
        num_embeddings=5,
        embedding_dim=SMALL,
        mode=st.sampled_from(["sum", "mean", "max"]),
        padding_idx=st.sampled_from([None, 0]),
    ),
    inputs=lambda a: dict(input=tokens("b n", 5)),
    outputs=lambda a, s: ("b", a.embedding_dim),
    foreign=True,
    without=dict(second_derivatives="torch has none of EmbeddingBag, and says so"),
)

convolution = Contract(
    nn.Conv2d,
    arguments=dict(
        in_channels=4, out_channels=st.sampled_from([2, 4]), kernel_size=st.sampled_from([1, 3, (3, 1)]),
        stride=st.sampled_from([1, 2]),
        padding=1, dilation=st.sampled_from([1, 2]), groups=st.sampled_from([1, 2]), bias=st.booleans(),
        padding_mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    ),
    inputs=lambda a: dict(input=tensor("b channels y x", channels=4, y=st.integers(5, 8), x=st.integers(5, 8))),
    outputs=lambda a, s: ...,
    foreign=True,
)  # fmt: skip

transposed = Contract(
    nn.ConvTranspose2d,
    arguments=dict(
        in_channels=4, out_channels=st.sampled_from([2, 4]), kernel_size=3, stride=st.sampled_from([1, 2]),
        padding=st.sampled_from([0, 1]),
        groups=st.sampled_from([1, 2]), bias=st.booleans(),
    ),
    inputs=lambda a: dict(input=tensor("b channels y x", channels=4)),
    outputs=lambda a, s: ("b", a.out_channels, *((n - 1) * a.stride - 2 * a.padding + 3 for n in (s.y, s.x))),
    foreign=True,
)  # fmt: skip

batch_norm = Contract(
    nn.BatchNorm2d,
    arguments=dict(
        num_features=SMALL, affine=st.booleans(), track_running_stats=st.booleans(), momentum=st.sampled_from([0.1, None])
    ),
    inputs=lambda a: dict(input=tensor("b channels y x", channels=a.num_features)),
    outputs=lambda a, s: ("b", a.num_features, s.y, s.x),
    trains_differently=lambda a: a.track_running_stats,
    foreign=True,
)

instance_norm = Contract(
    nn.InstanceNorm2d,
    arguments=dict(num_features=SMALL, affine=st.booleans(), track_running_stats=st.booleans()),
    inputs=lambda a: dict(input=tensor("b channels y x", channels=a.num_features)),
    outputs=lambda a, s: ("b", a.num_features, s.y, s.x),
    trains_differently=lambda a: a.track_running_stats,
    foreign=True,
)

group_norm = Contract(
    nn.GroupNorm,
    arguments=dict(num_groups=st.sampled_from([1, 2]), num_channels=4, affine=st.booleans()),
    inputs=lambda a: dict(input=tensor("b channels y x", channels=4)),
    outputs=lambda a, s: ("b", 4, s.y, s.x),
    foreign=True,
)

layer_norm = Contract(
    nn.LayerNorm,
    arguments=dict(normalized_shape=st.integers(3, 6), elementwise_affine=st.booleans(), bias=st.booleans()),
    inputs=lambda a: dict(input=tensor("b n d", d=a.normalized_shape)),
    outputs=lambda a, s: ("b", "n", a.normalized_shape),
    foreign=True,
)

rms_norm = Contract(
    nn.RMSNorm,
    arguments=dict(normalized_shape=st.integers(3, 6), eps=st.sampled_from([None, 1e-5]), elementwise_affine=st.booleans()),
    inputs=lambda a: dict(x=tensor("b n d", d=a.normalized_shape)),
    outputs=lambda a, s: ("b", "n", a.normalized_shape),
    foreign=True,
)


def recurrent(a, states=("hx",)):
    """Inputs of a network over time; the state's axes begin with layers times directions."""
    layers = a.num_layers * (1 + a.bidirectional)
    state = [tensor("layers b h", layers=layers, h=getattr(a, "proj_size", 0) or a.hidden_size)]
    if "cx" in states:
        state.append(tensor("layers b c", layers=layers, c=a.hidden_size))
    given = tuple(state) if len(state) > 1 else state[0]
    return dict(input=tensor("b n d", d=a.input_size, n=st.integers(2, 4)), hx=given)


RECURRENT = dict(
    input_size=st.integers(2, 3), hidden_size=st.integers(5, 6), num_layers=st.sampled_from([1, 2]), bias=st.booleans(),
    batch_first=True
)  # fmt: skip


def over_time(a, s):
    width = (getattr(a, "proj_size", 0) or a.hidden_size) * (1 + a.bidirectional)
    return [("b", "n", width), ...]


lstm = Contract(
    nn.LSTM,
    arguments=RECURRENT | dict(bidirectional=st.booleans(), proj_size=st.sampled_from([0, 4])),
    inputs=lambda a: recurrent(a, ("hx", "cx")),
    outputs=over_time,
    foreign=True,
)

lstm_forward = Contract(
    nn.LSTM,
    arguments=RECURRENT | dict(bidirectional=False, proj_size=st.sampled_from([0, 4])),
    inputs=lambda a: recurrent(a, ("hx", "cx")),
    outputs=over_time,
    holds=[streaming("input", "n", 1, state="hx")],
    foreign=True,
    name="LSTM, one direction",
)

gru = Contract(
    nn.GRU,
    arguments=RECURRENT | dict(bidirectional=False),
    inputs=recurrent,
    outputs=over_time,
    holds=[streaming("input", "n", 1, state="hx")],
    foreign=True,
)

rnn = Contract(
    nn.RNN,
    arguments=RECURRENT | dict(bidirectional=st.booleans(), nonlinearity=st.sampled_from(["tanh", "relu"])),
    inputs=recurrent,
    outputs=over_time,
    foreign=True,
)

gru_cell = Contract(
    nn.GRUCell,
    arguments=dict(input_size=st.integers(2, 3), hidden_size=st.integers(4, 6), bias=st.booleans()),
    inputs=lambda a: dict(input=tensor("b d", d=a.input_size), hx=tensor("b h", h=a.hidden_size)),
    outputs=lambda a, s: ("b", a.hidden_size),
    foreign=True,
)


def padded(module, inputs):
    """Self attention in which `mask`, of (b, 1, 1, n), says what may be seen."""
    mask = inputs.get("mask")
    hidden = None if mask is None else ~mask[:, 0, 0]
    x = inputs["x"] if module.batch_first else inputs["x"].transpose(0, 1)
    output = module(x, x, x, key_padding_mask=hidden, need_weights=False)[0]
    return output if module.batch_first else output.transpose(0, 1)


ATTENTION = dict(
    embed_dim=st.sampled_from([4, 8]), num_heads=st.sampled_from([1, 2]), bias=st.booleans(), add_bias_kv=st.booleans(),
    add_zero_attn=st.booleans(), batch_first=st.booleans(),
)  # fmt: skip

self_attention = Contract(
    nn.MultiheadAttention,
    arguments=ATTENTION,
    inputs=lambda a: dict(x=tensor("b n d", d=a.embed_dim, n=st.integers(3, 5))),
    outputs=lambda a, s: ("b", "n", a.embed_dim),
    call=padded,
    holds=[permutation_equivariant("x", "n", 1), padding_invariant("x", "n", 1)],
    foreign=True,
    without=FUSED,
    name="MultiheadAttention, to itself",
)


def masked(module, inputs):
    """Attention in which `mask`, of (b, 1, q, k), says what each query may see."""
    allowed = inputs["mask"].repeat_interleave(module.num_heads, 1).flatten(0, 1)
    return module(inputs["query"], inputs["key"], inputs["value"], attn_mask=~allowed, need_weights=inputs["need_weights"])


cross_attention = Contract(
    nn.MultiheadAttention,
    arguments=ATTENTION | dict(kdim=st.sampled_from([None, 3]), vdim=st.sampled_from([None, 5]), batch_first=True),
    inputs=lambda a: dict(
        query=tensor("b q d", d=a.embed_dim),
        key=tensor("b k kdim", kdim=a.kdim or a.embed_dim),
        value=tensor("b k vdim", vdim=a.vdim or a.embed_dim),
        mask=drawn_mask("b 1 q k"),
        need_weights=st.booleans(),
    ),
    outputs=lambda a, s: [("b", "q", a.embed_dim), ...],
    call=masked,
    foreign=True,
    without=FUSED,
    name="MultiheadAttention, to others",
)


def encoded(module, inputs):
    mask = inputs.get("mask")
    return module(inputs["x"], src_key_padding_mask=None if mask is None else ~mask[:, 0, 0])


ENCODER = dict(
    d_model=st.sampled_from([4, 8]), nhead=st.sampled_from([1, 2]), dim_feedforward=st.sampled_from([5, 6]), dropout=0.0,
    activation=st.sampled_from(["relu", "gelu"]), batch_first=True, norm_first=st.booleans(), bias=st.booleans(),
)  # fmt: skip

encoder_layer = Contract(
    nn.TransformerEncoderLayer,
    arguments=ENCODER,
    inputs=lambda a: dict(x=tensor("b n d", d=a.d_model, n=st.integers(3, 5))),
    outputs=lambda a, s: ("b", "n", a.d_model),
    call=encoded,
    holds=[permutation_equivariant("x", "n", 1), padding_invariant("x", "n", 1)],
    foreign=True,
    without=FUSED,
)

decoder_layer = Contract(
    nn.TransformerDecoderLayer,
    arguments=ENCODER,
    inputs=lambda a: dict(tgt=tensor("b n d", d=a.d_model), memory=tensor("b m d", d=a.d_model)),
    outputs=lambda a, s: ("b", "n", a.d_model),
    foreign=True,
    without=FUSED,
)

prelu = Contract(
    nn.PReLU,
    arguments=dict(num_parameters=st.sampled_from([1, 3])),
    inputs=lambda a: dict(input=tensor("b channels n", channels=3)),
    outputs=lambda a, s: ("b", 3, "n"),
    foreign=True,
)


def weight_normed(dim):
    return nn.utils.parametrizations.weight_norm(nn.Linear(dim, 4))


weight_norm = Contract(
    weight_normed,
    arguments=dict(dim=st.integers(2, 4)),
    inputs=lambda a: dict(input=tensor("b d", d=a.dim)),
    outputs=lambda a, s: ("b", 4),
    foreign=True,
    name="Linear with weight_norm",
)
