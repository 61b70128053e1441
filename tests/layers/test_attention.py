from __future__ import annotations

import torch
from attentions import torch_weights
from einops import repeat
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, GPT2Config, LlamaConfig, MarianConfig, Qwen3Config
from transformers.models.bert.modeling_bert import BertSelfAttention
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.marian.modeling_marian import MarianAttention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RotaryEmbedding

from layers import masks
from layers.attention import MultiHeadAttention
from layers.cache import Cache, RollingCache
from layers.normalization import RMSNorm
from layers.positions import ALiBi, RelativeBias, Rotary
from layers.testing import (
    Contract,
    Twin,
    cache_consistent,
    exercised,
    influence,
    mask,
    padding_invariant,
    part,
    permutation_equivariant,
    tensor,
    tokens,
)
from layers.weights import WeightMap

INVALID = [
    (dict(heads=0), "heads"),
    (dict(kv_heads=0), "kv_heads"),
    (dict(head_dim=0), "head_dim"),
    (dict(window=0), "window"),
    (dict(dropout=1.0), "dropout"),
    (dict(dropout=-0.1), "dropout"),
    (dict(softcap=0.0), "softcap"),
]


def divisors(n):
    return st.sampled_from([d for d in range(1, n + 1) if n % d == 0])


# The explicit backend, which writes the formula down: a twin of the fused one for every option.
explicit = Twin(
    "explicit",
    build=lambda a: MultiHeadAttention(**a.passed()),
    weights=WeightMap(("", "")),
    call=lambda module, inputs: module(**inputs, return_weights=True)[0],
)


# --------------------------------------------------------------------------------- torch's, with masks of both kinds


def call_torch(additive):
    """Their mask hides where it is True, or adds -inf; a row that may attend to nothing gives NaN there and zeros here."""

    def call(module, inputs):
        query, key, value, allowed = (inputs[n] for n in ("query", "key", "value", "mask"))
        allowed = repeat(allowed, "b 1 q k -> (b h) q k", h=module.num_heads)
        dead = ~allowed.any(-1, keepdim=True)
        theirs = masks.forbidden_from_allowed(allowed | dead)
        theirs = masks.additive_from_allowed(~theirs, query.dtype) if additive else theirs
        output = module(query, key, value, attn_mask=theirs, need_weights=False)[0]
        nothing = module.out_proj.bias if module.out_proj.bias is not None else torch.zeros_like(output)
        return torch.where(inputs["mask"][:, 0].any(-1, keepdim=True), output, nothing)

    return call


torch_attention = Contract(
    MultiHeadAttention,
    arguments=dict(
        heads=st.integers(1, 4),
        _head_dim=st.sampled_from([1, 2, 4]),
        dim=lambda a: a.heads * a._head_dim,
        _widths=st.sampled_from(["same", "own"]),
        key_dim=lambda a: a.dim if a._widths == "same" else a.dim + 1,
        value_dim=lambda a: a.dim if a._widths == "same" else a.dim + 2,
        bias=st.booleans(),
        dropout=st.sampled_from([0.0, 0.3]),
    ),
    inputs=lambda a: dict(
        query=tensor("batch queries dim", dim=a.dim),
        key=tensor("batch keys key_dim", key_dim=a.key_dim),
        value=tensor("batch keys value_dim", value_dim=a.value_dim),
        mask=mask("batch 1 queries keys"),
    ),
    outputs=lambda a, s: ("batch", "queries", a.dim),
    twins=[
        explicit,
        *(
            Twin(
                name,
                build=lambda a: nn.MultiheadAttention(
                    a.dim, a.heads, a.dropout, a.bias, kdim=a.key_dim, vdim=a.value_dim, batch_first=True
                ),
                weights=torch_weights,
                call=call_torch(additive=name == "torch_additive"),
            )
            for name in ("torch", "torch_additive")
        ),
    ],
    holds=[exercised(real="it makes rows of another number: tests/layers/test_padding.py")],
    invalid=[*INVALID, (dict(heads=99), "heads")],
    trains_differently=lambda a: a.dropout > 0,
    stochastic=lambda a: a.dropout > 0,
    name="CrossAttention",
)


# --------------------------------------------------------------------- grouped queries, causal, windows, caches: Llama's


def llama(implementation):
    def build(a):
        config = LlamaConfig(
            hidden_size=a.dim, num_attention_heads=a.heads, num_key_value_heads=a.kv_heads, head_dim=a.head_dim,
            attention_bias=a.bias, attn_implementation=implementation,
        )  # fmt: skip
        return LlamaAttention(config, layer_idx=0)

    return build


def call_llama(module, inputs):
    """Without rotation, as angle 0 does not rotate; its mask is additive."""
    x = inputs["query"]
    b, n, _ = x.shape
    unrotated = x.new_ones(b, n, module.head_dim), x.new_zeros(b, n, module.head_dim)
    mask = masks.additive_from_allowed(masks.causal(n), x.dtype)[None, None]
    return module(x, unrotated, mask)[0]


LLAMA = WeightMap(("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "o_proj"))

grouped = dict(
    heads=st.sampled_from([1, 2, 3, 4, 4, 6, 6]),  # 4 and 6 have groups that are neither one head nor all
    kv_heads=lambda a: divisors(a.heads),
    head_dim=st.sampled_from([2, 4, 6]),
    dim=lambda a: a.heads * 3,
    bias=st.booleans(),
)

causal_attention = Contract(
    MultiHeadAttention,
    arguments=grouped | dict(causal=True),
    inputs=lambda a: dict(query=tensor("batch queries dim", dim=a.dim)),
    outputs=lambda a, s: ("batch", "queries", a.dim),
    twins=[
        explicit,
        Twin(
            "llama_eager",
            build=llama("eager"),
            weights=LLAMA,
            call=call_llama,
            single_precision="models/llama/modeling_llama.py, eager_attention_forward: softmax(..., dtype=torch.float32)",
        ),
        Twin("llama_sdpa", build=llama("sdpa"), weights=LLAMA, call=call_llama),
    ],
    holds=[
        influence("causal", "query", "queries", lambda a, i, o: i <= o, 1),
        padding_invariant("query", "queries", 1),
        cache_consistent("query", "queries", 1, lambda a, n: Cache(n + 2)),
    ],
    invalid=INVALID,
    name="CausalAttention",
)

windowed_attention = Contract(
    MultiHeadAttention,
    arguments=grouped | dict(causal=st.booleans(), window=st.integers(2, 3)),
    inputs=lambda a: dict(query=tensor("batch queries dim", dim=a.dim, queries=st.integers(4, 6))),
    outputs=lambda a, s: ("batch", "queries", a.dim),
    twins=[explicit],
    holds=[
        influence("window", "query", "queries", lambda a, i, o: abs(o - i) < a.window and (i <= o or not a.causal), 1),
        padding_invariant("query", "queries", 1),
    ],
    invalid=INVALID,
    name="WindowAttention",
)

rolling_attention = Contract(
    MultiHeadAttention,
    arguments=grouped | dict(causal=True, window=st.integers(2, 4)),
    inputs=lambda a: dict(query=tensor("batch queries dim", dim=a.dim, queries=st.just(6)), mask=mask("batch 1 1 queries")),
    outputs=lambda a, s: ("batch", "queries", a.dim),
    twins=[explicit],
    holds=[cache_consistent("query", "queries", 1, lambda a, n: RollingCache(a.window))],
    invalid=INVALID,
    name="RollingAttention",
)

masked_cache_attention = Contract(
    MultiHeadAttention,
    arguments=grouped | dict(causal=True),
    inputs=lambda a: dict(query=tensor("batch queries dim", dim=a.dim), mask=mask("batch 1 1 queries")),
    outputs=lambda a, s: ("batch", "queries", a.dim),
    twins=[explicit],
    holds=[cache_consistent("query", "queries", 1, lambda a, n: Cache(n))],
    invalid=INVALID,
    name="MaskedCausalAttention",
)


# ------------------------------------------------------------------------------- positions, norms and biases passed in

positioned = dict(
    heads=st.sampled_from([2, 4, 6]),
    kv_heads=2,
    head_dim=st.sampled_from([2, 4]),
    dim=lambda a: a.heads * 3,
    causal=True,
    positions=lambda a: st.sampled_from([None, part(Rotary, dim=a.head_dim), part(Rotary, dim=a.head_dim, interleaved=True)]),
    query_norm=lambda a: st.sampled_from([None, part(RMSNorm, dim=a.head_dim)]),
    key_norm=lambda a: st.sampled_from([None, part(RMSNorm, dim=a.head_dim)]),
    softcap=st.sampled_from([None, 2.0]),
    output_bias=st.sampled_from([None, False]),
    position_bias=lambda a: st.sampled_from(
        [None, part(ALiBi, heads=a.heads), part(RelativeBias, heads=a.heads, buckets=4, max_distance=9)]
    ),
)
positioned_attention = Contract(
    MultiHeadAttention,
    arguments=positioned,
    inputs=lambda a: dict(query=tensor("batch queries dim", dim=a.dim)),
    outputs=lambda a, s: ("batch", "queries", a.dim),
    twins=[explicit],
    holds=[
        influence("causal", "query", "queries", lambda a, i, o: i <= o, 1),
        padding_invariant("query", "queries", 1),
        cache_consistent("query", "queries", 1, lambda a, n: Cache(n + 1)),
    ],
    invalid=INVALID,
    name="PositionedAttention",
    without={"parameters_used": "a table of relative biases has rows for distances that short sentences have not"},
)
rolling_positions = Contract(
    MultiHeadAttention,
    arguments=positioned | dict(window=3),
    inputs=lambda a: dict(query=tensor("batch queries dim", dim=a.dim, queries=st.just(6))),
    outputs=lambda a, s: ("batch", "queries", a.dim),
    twins=[explicit],
    holds=[cache_consistent("query", "queries", 1, lambda a, n: RollingCache(3))],
    invalid=INVALID,
    name="RollingPositions",
    without={"parameters_used": "a table of relative biases has rows for distances that short sentences have not"},
)


def call_placed(module, inputs):
    output, weights = module(**inputs | {"return_weights": True})
    return [output, weights] if inputs["return_weights"] else output


placed_attention = Contract(
    MultiHeadAttention,
    arguments=grouped | dict(causal=True, positions=lambda a: part(Rotary, dim=a.head_dim), _weights=st.booleans()),
    inputs=lambda a: dict(
        query=tensor("batch queries dim", dim=a.dim), positions=tokens("batch queries", 20), return_weights=a._weights
    ),
    outputs=lambda a, s: (
        [("batch", "queries", a.dim), ("batch", a.heads, "queries", "queries")] if a._weights else ("batch", "queries", a.dim)
    ),
    twins=[Twin("explicit", build=explicit.build, weights=explicit.weights, call=call_placed)],
    invalid=INVALID,
    name="PlacedAttention",
)


class Llama(nn.Module):
    def __init__(self, a):
        super().__init__()
        config = LlamaConfig(
            hidden_size=a.dim, num_attention_heads=a.heads, num_key_value_heads=a.kv_heads, head_dim=a.head_dim,
            attention_bias=a.bias, attn_implementation="sdpa",
        )  # fmt: skip
        self.attention, self.rotary = LlamaAttention(config, layer_idx=0), LlamaRotaryEmbedding(config)

    def forward(self, query):
        n = query.shape[1]
        mask = masks.additive_from_allowed(masks.causal(n), query.dtype)[None, None]
        return self.attention(query, self.rotary(query, torch.arange(n)[None]), mask)[0]


llama_attention = Contract(
    MultiHeadAttention,
    arguments=grouped | dict(causal=True, positions=lambda a: part(Rotary, dim=a.head_dim)),
    inputs=lambda a: dict(query=tensor("batch queries dim", dim=a.dim)),
    outputs=lambda a, s: ("batch", "queries", a.dim),
    twins=[
        Twin(
            "llama",
            build=Llama,
            weights=WeightMap(
                *((n, f"attention.{n[0]}_proj") for n in ("query", "key", "value")), ("output", "attention.o_proj")
            ),
            single_precision="models/llama/modeling_llama.py, LlamaRotaryEmbedding.forward: inv_freq_expanded.float()",
        )
    ],
    invalid=INVALID,
    name="LlamaAttention",
)


class Qwen3(nn.Module):
    """With norms of queries and keys, which only rotation tells from each other: else their weights are one product."""

    def __init__(self, a):
        super().__init__()
        config = Qwen3Config(
            hidden_size=a.dim, num_attention_heads=a.heads, num_key_value_heads=a.kv_heads, head_dim=a.head_dim,
            attention_bias=a.bias, attn_implementation="sdpa",
        )  # fmt: skip
        self.attention, self.rotary = Qwen3Attention(config, layer_idx=0), Qwen3RotaryEmbedding(config)

    def forward(self, query):
        n = query.shape[1]
        mask = masks.additive_from_allowed(masks.causal(n), query.dtype)[None, None]
        return self.attention(query, self.rotary(query, torch.arange(n)[None]), mask)[0]


qwen3_attention = Contract(
    MultiHeadAttention,
    arguments=grouped
    | dict(causal=True, positions=lambda a: part(Rotary, dim=a.head_dim))
    | dict.fromkeys(("query_norm", "key_norm"), lambda a: part(RMSNorm, dim=a.head_dim)),
    inputs=lambda a: dict(query=tensor("batch queries dim", dim=a.dim)),
    outputs=lambda a, s: ("batch", "queries", a.dim),
    twins=[
        Twin(
            "qwen3",
            build=Qwen3,
            weights=WeightMap(
                *((n, f"attention.{n[0]}_proj") for n in ("query", "key", "value")), ("output", "attention.o_proj"),
                ("query_norm", "attention.q_norm"), ("key_norm", "attention.k_norm"),
            ),
            single_precision="models/qwen3/modeling_qwen3.py, Qwen3RMSNorm.forward: hidden_states.to(torch.float32)",
        )
    ],
    invalid=INVALID,
    name="Qwen3Attention",
)  # fmt: skip


# -------------------------------------------------------------------------------------------- BERT's, GPT-2's, Marian's

heads_of_dim = dict(heads=st.integers(1, 4), _head_dim=st.sampled_from([1, 2, 4]), dim=lambda a: a.heads * a._head_dim)


class Bert(nn.Module):
    def __init__(self, a, implementation):
        super().__init__()
        config = BertConfig(hidden_size=a.dim, num_attention_heads=a.heads, attention_probs_dropout_prob=0.0)
        config._attn_implementation = implementation
        self.attention, self.dense = BertSelfAttention(config), nn.Linear(a.dim, a.dim)

    def forward(self, query, mask):
        """Their lowest number in place of -inf: a row that may attend to nothing attends to everything, so it is left out."""
        dead = ~mask.any(-1, keepdim=True)
        attended = self.attention(query, masks.additive_from_allowed(mask | dead, query.dtype))[0]
        return self.dense(attended.masked_fill(dead[:, 0], 0.0))


bert_attention = Contract(
    MultiHeadAttention,
    arguments=heads_of_dim,
    inputs=lambda a: dict(query=tensor("batch queries dim", dim=a.dim), mask=mask("batch 1 1 queries")),
    outputs=lambda a, s: ("batch", "queries", a.dim),
    twins=[
        Twin(
            f"bert_{how}",
            build=lambda a, how=how: Bert(a, how),
            weights=WeightMap(*((n, f"attention.{n}") for n in ("query", "key", "value")), ("output", "dense")),
        )
        for how in ("eager", "sdpa")
    ],
    name="BertAttention",
    invalid=INVALID,
    holds=[padding_invariant("query", "queries", 1)],
)

free_attention = Contract(
    MultiHeadAttention,
    arguments=heads_of_dim,
    inputs=lambda a: dict(query=tensor("batch queries dim", dim=a.dim)),
    outputs=lambda a, s: ("batch", "queries", a.dim),
    twins=[explicit],
    name="SelfAttention",
    invalid=INVALID,
    holds=[permutation_equivariant("query", "queries", 1)],
)


def gpt2(a):
    config = GPT2Config(n_embd=a.dim, n_head=a.heads, attn_pdrop=0.0, resid_pdrop=0.0)
    config._attn_implementation = "sdpa"
    return GPT2Attention(config, layer_idx=0)


GPT2 = WeightMap(
    ("query.weight key.weight value.weight", "c_attn.weight", "qkv o i -> i (qkv o)"),
    ("query.bias key.bias value.bias", "c_attn.bias", "qkv o -> (qkv o)"),
    ("output.weight", "c_proj.weight", "o i -> i o"),
    ("output.bias", "c_proj.bias"),
)

gpt2_attention = Contract(
    MultiHeadAttention,
    arguments=heads_of_dim | dict(causal=True),
    inputs=lambda a: dict(query=tensor("batch queries dim", dim=a.dim)),
    outputs=lambda a, s: ("batch", "queries", a.dim),
    twins=[Twin("gpt2", build=gpt2, weights=GPT2, call=lambda m, i: m(i["query"])[0])],
    name="GPT2Attention",
    invalid=INVALID,
)


def marian(a):
    config = MarianConfig(d_model=a.dim, pad_token_id=0, vocab_size=10)
    config._attn_implementation = "eager"
    return MarianAttention(a.dim, a.heads, config=config)


marian_attention = Contract(
    MultiHeadAttention,
    arguments=heads_of_dim,
    inputs=lambda a: dict(query=tensor("batch queries dim", dim=a.dim), key=tensor("batch keys key_dim", key_dim=a.dim)),
    outputs=lambda a, s: ("batch", "queries", a.dim),
    twins=[
        Twin(
            "marian",
            build=marian,
            weights=WeightMap(("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "out_proj")),
            call=lambda m, i: m(i["query"], key_value_states=i["key"])[0],
        )
    ],
    name="MarianAttention",
    invalid=INVALID,
    holds=[permutation_equivariant("query", "queries", 1)],
)
