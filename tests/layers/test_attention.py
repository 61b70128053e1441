from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.utils.checkpoint
from einops import rearrange, repeat
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, GPT2Config, LlamaConfig, MarianConfig
from transformers.models.bert.modeling_bert import BertSelfAttention
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.marian.modeling_marian import MarianAttention

from layers import masks
from layers.attention import MultiHeadAttention, attend
from layers.cache import Cache, CrossCache, RollingCache, SharedCache
from layers.normalization import RMSNorm
from layers.positions import ALiBi, RelativeBias, Rotary, Sinusoidal
from layers.rotary_scaling import Llama3Scaling
from layers.testing import (
    Contract,
    Twin,
    cache_consistent,
    influence,
    mask,
    padding_invariant,
    part,
    permutation_equivariant,
    tensor,
)
from layers.weights import WeightMap

INVALID = [
    (dict(heads=0), "heads"),
    (dict(kv_heads=0), "kv_heads"),
    (dict(head_dim=0), "head_dim"),
    (dict(window=0), "window"),
    (dict(dropout=1.0), "dropout"),
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
    heads=st.integers(1, 6),
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


# ---------------------------------------------------------------------------------------------- what no contract states


def attention(**options):
    torch.manual_seed(0)
    return MultiHeadAttention(12, 4, **options).double().eval()


def test_causal_with_fewer_queries_than_keys_is_aligned_at_the_end():
    block, memory = attention(causal=True), torch.randn(2, 7, 12, dtype=torch.float64)
    whole = block(memory, memory)
    for new in (1, 2, 5):
        torch.testing.assert_close(block(memory[:, -new:], memory), whole[:, -new:])


@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (2, 1, 5, 7), (2, 1, 1, 7), (1, 4, 5, 7), (2, 4, 5, 1), (4, 1, 7)])
def test_masks_of_every_shape_mean_what_their_expansion_means(shape):
    block = attention()
    query, memory = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(2, 7, 12, dtype=torch.float64)
    allowed = torch.rand(shape) < 0.6
    expanded = allowed.expand(2, 4, 5, 7)
    torch.testing.assert_close(block(query, memory, mask=allowed), block(query, memory, mask=expanded))
    assert not torch.equal(block(query, memory, mask=allowed), block(query, memory))
    ones = torch.ones(shape, dtype=torch.bool)
    torch.testing.assert_close(block(query, memory, mask=ones), block(query, memory))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("length", [3, 70, 600])
def test_a_row_that_may_attend_to_nothing_gives_zeros_and_finite_gradients(dtype, length):
    """For sizes beyond the blocks of fused kernels too, for both backends, with dropout and without."""
    for dropout in (0.0, 0.2):
        for explicit in (False, True):
            x = [torch.randn(2, 3, length, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
            allowed = torch.rand(2, 1, length, length) < 0.5
            allowed[0, :, 0, 0], allowed[0, :, 1], allowed[1] = True, False, False
            output, weights = attend(*x, allowed, dropout=dropout, return_weights=explicit)
            assert not output[0, :, 1].any()
            assert not output[1].any()
            assert output[0].any()
            output.sum().backward()
            assert all(t.grad.isfinite().all() for t in x)
            if weights is not None:
                assert not weights[1].any()
                torch.testing.assert_close(weights[0, :, 0].sum(-1), torch.ones(3, dtype=dtype), rtol=0.02, atol=0)


@pytest.mark.parametrize("explicit", [False, True])
def test_poison_behind_a_mask_does_not_leak(explicit):
    block = attention(dropout=0.1)
    for poison in (float("nan"), float("inf")):
        for train in (False, True):
            memory = torch.randn(2, 7, 12, dtype=torch.float64)
            memory[0, 5:] = memory[1, 2:] = poison
            memory.requires_grad_()
            query = torch.randn(2, 4, 12, dtype=torch.float64)
            lengths = torch.tensor([5, 2])
            output = block.train(train)(query, memory, mask=masks.padding(lengths, 7), return_weights=explicit)
            output = output[0] if explicit else output
            assert output.isfinite().all()
            output.sum().backward()
            assert all(p.grad.isfinite().all() for p in block.parameters())
            clean = memory.detach().nan_to_num(0.0, 0.0, 0.0)
            again = block.eval()(query, clean, mask=masks.padding(lengths, 7))
            assert torch.equal(again, block(query, memory.detach(), mask=masks.padding(lengths, 7)))


def test_weights_are_those_of_torch():
    block, theirs = attention(), nn.MultiheadAttention(12, 4, batch_first=True).double().eval()
    same = SimpleNamespace(dim=12, key_dim=12, value_dim=12, bias=True)
    theirs.load_state_dict(torch_weights(same).export(block))
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    allowed = masks.causal(5)
    ours = block(x, mask=allowed, return_weights=True)[1]
    expected = theirs(x, x, x, attn_mask=~allowed, average_attn_weights=False)[1]
    torch.testing.assert_close(ours, expected)


def test_twin_with_its_fast_path():
    """nn.MultiheadAttention takes another path in eval mode without gradients; both must be equal to ours."""
    block, theirs = attention(), nn.MultiheadAttention(12, 4, batch_first=True).double().eval()
    theirs.load_state_dict(torch_weights(SimpleNamespace(dim=12, key_dim=12, value_dim=12, bias=True)).export(block))
    x, lengths = torch.randn(3, 6, 12, dtype=torch.float64), torch.tensor([6, 2, 4])
    with torch.no_grad():
        expected = theirs(x, x, x, key_padding_mask=~masks.allowed_from_lengths(lengths, 6), need_weights=False)[0]
        torch.testing.assert_close(block(x, mask=masks.padding(lengths, 6)), expected)


def test_a_batch_of_unequal_lengths_decodes_as_its_rows_alone():
    block = attention(causal=True, kv_heads=2)
    x, lengths = torch.randn(3, 7, 12, dtype=torch.float64), [7, 3, 5]
    left = masks.padding(torch.tensor(lengths), 7, side="left")
    cache, outputs = Cache(7), []
    with torch.no_grad():
        for piece in x.split([4, 1, 2], 1):
            outputs.append(block(piece, mask=left, cache=cache))
        batched = torch.cat(outputs, 1)
        for row, length in enumerate(lengths):
            torch.testing.assert_close(batched[row, 7 - length :], block(x[row : row + 1, 7 - length :])[0])


def test_cross_cache_computes_the_memory_once():
    block, memory = attention(), torch.randn(2, 6, 12, dtype=torch.float64)
    allowed, query = masks.padding(torch.tensor([6, 2]), 6), torch.randn(2, 3, 12, dtype=torch.float64)
    cache = CrossCache()
    memory[1, 2:] = float("nan")
    first = block(query, memory, mask=allowed, cache=cache)
    torch.testing.assert_close(first, block(query, memory, mask=allowed))
    again = block(query, torch.zeros_like(memory), mask=allowed, cache=cache)
    assert torch.equal(first, again)
    cache.select(torch.tensor([1, 1, 0]))
    reordered = block(query[[1, 1, 0]], memory[[1, 1, 0]], mask=allowed[[1, 1, 0]], cache=cache)
    torch.testing.assert_close(reordered, first[[1, 1, 0]])


@pytest.mark.parametrize("make", [lambda: Cache(6), lambda: SharedCache(6), lambda: RollingCache(3)])
def test_cache_rows_can_be_selected_between_steps(make):
    block = attention(causal=True, window=3)
    x, rows, cache = torch.randn(3, 6, 12, dtype=torch.float64), torch.tensor([2, 0, 0]), make()
    with torch.no_grad():
        block(x[:, :4], cache=cache)
        cache.select(rows)
        continued = torch.cat([x[rows, :4], x[:, 4:]], 1)
        torch.testing.assert_close(block(x[:, 4:], cache=cache), block(continued)[:, 4:])


def test_a_shared_cache_gives_what_a_cache_gives_and_copies_only_for_another_number_of_rows():
    block, plain, shared = attention(causal=True, kv_heads=2), Cache(9), SharedCache(9)
    chosen = [[2, 0, 0], [1, 1, 2], [0, 0, 1], [2, 2, 0, 1, 1], [4, 0, 3, 3, 1], [3, 1], [1, 0]]
    rows = 3
    with torch.no_grad():
        for n, kept in enumerate(chosen):
            x = torch.randn(rows, 1 + (n == 2), 12, dtype=torch.float64)
            assert torch.equal(block(x, cache=shared), block(x, cache=plain))
            memory = shared.keys
            for cache in (plain, shared):
                cache.select(torch.tensor(kept))
            assert (shared.keys is memory) == (len(kept) == rows)
            rows = len(kept)
        x = torch.randn(rows, 1, 12, dtype=torch.float64)
        assert torch.equal(block(x, cache=shared), block(x, cache=plain))


def test_a_shared_cache_grows_as_positions_come_and_keeps_what_it_holds():
    block, plain, shared = attention(causal=True, kv_heads=2), Cache(60), SharedCache(60)
    slots, rows = [], 3
    kept = [[1, 2, 0], [0, 0, 1, 2], [3, 1], [1, 0], [1, 1, 0], [2, 2, 1], [0], [0, 0]]
    with torch.no_grad():
        for tokens, chosen in zip((3, 12, 1, 1, 20, 1, 21, 1), kept, strict=True):
            x = torch.randn(rows, tokens, 12, dtype=torch.float64)
            torch.testing.assert_close(block(x, cache=shared), block(x, cache=plain))
            for cache in (plain, shared):
                cache.select(torch.tensor(chosen))
            rows = len(chosen)
            assert shared.rows.shape == (rows, shared.keys.shape[2])
            slots.append((int(shared.length), shared.keys.shape[2]))
    assert slots == [(3, 16), (15, 16), (16, 16), (17, 32), (37, 60), (38, 60), (59, 60), (60, 60)]
    with pytest.raises(ValueError, match="cache has a capacity of 60, got 60 \\+ 1 positions"):
        block(torch.randn(rows, 1, 12, dtype=torch.float64), cache=shared)


def test_a_compiled_step_of_a_shared_cache_serves_every_number_of_slots():
    block, plain, shared = attention(causal=True), Cache(40), SharedCache(40)
    x = torch.randn(2, 40, 12, dtype=torch.float64)
    with torch.no_grad():
        expected = block(x, cache=plain)
        found = [block(x[:, :15], cache=shared)]
        torch._dynamo.reset()
        step = torch.compile(lambda piece: block(piece, cache=shared), backend="eager", dynamic=True)
        for i in range(15, 40):
            shared.require_room(1)
            found.append(step(x[:, i : i + 1]))
    torch.testing.assert_close(torch.cat(found, 1), expected)


def test_one_compiled_step_serves_every_position():
    block, cache = attention(causal=True), Cache(8)
    x, graphs = torch.randn(2, 8, 12, dtype=torch.float64), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        expected = block(x)
        block(x[:, :3], cache=cache)
        torch._dynamo.reset()
        step = torch.compile(lambda piece: block(piece, cache=cache), backend=backend, fullgraph=True)
        found = torch.cat([step(x[:, i : i + 1]) for i in range(3, 8)], 1)
    torch.testing.assert_close(found, expected[:, 3:])
    assert len(graphs) == 1


def test_the_fused_backend_needs_memory_for_rows_not_for_pairs():
    """Four times the length: an explicit q * k matrix takes sixteen times the memory, the fused one about four."""

    def peak(length, explicit):
        q = torch.randn(1, 2, length, 16)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            attend(q, q, q, causal=True, return_weights=explicit)
        return max(event.self_cpu_memory_usage for event in profile.events())

    assert peak(2048, False) <= 5 * peak(512, False)
    assert peak(2048, True) >= 14 * peak(512, True)


@pytest.mark.parametrize(
    ("options", "inputs", "words"),
    [
        ({}, dict(mask=torch.ones(2, 1, 1, 5)), "mask must be boolean"),
        ({}, dict(mask=torch.ones(5, dtype=torch.bool)), "mask must be"),
        ({}, dict(cache=Cache(9)), "cache must be"),
        (dict(causal=True), dict(cache=Cache(4)), "capacity of 4"),
        (dict(causal=True), dict(cache=Cache(9), mask=torch.ones(2, 1, 1, 3, dtype=torch.bool)), "mask must be 5 keys wide"),
        (dict(causal=True), dict(cache=Cache(9), key=torch.randn(2, 5, 12)), "key must be None"),
        (dict(positions=nn.Identity()), dict(key=torch.randn(2, 5, 12)), "key must be None"),
        ({}, dict(mask=torch.ones(2, 1, 1, 6, dtype=torch.bool)), "mask must be broadcastable"),
    ],
)
def test_bad_calls_are_named(options, inputs, words):
    with pytest.raises(ValueError, match=words):
        attention(**options).float()(torch.randn(2, 5, 12), **inputs)


def test_rows_of_the_batch_stay_apart_in_the_weights():
    block, x = attention(), torch.randn(2, 5, 12, dtype=torch.float64)
    output, weights = block(x, return_weights=True)
    assert weights.shape == (2, 4, 5, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 5, dtype=torch.float64))
    values = rearrange(block.value(x), "b n (h d) -> b h n d", h=4)
    torch.testing.assert_close(block.output(rearrange(weights @ values, "b h n d -> b n (h d)")), output)


# ------------------------------------------------------------------------------------------- sizes that must agree


def ones(*shape):
    return torch.ones(shape, dtype=torch.bool)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (dict(query=(2, 3, 5, 4, 1)), "query must have 4 axes"),
        (dict(key=(1, 3, 6, 4)), "key: batch must be 2, got 1"),
        (dict(key=(2, 1, 6, 4)), "key: heads must be 3, got 1"),
        (dict(key=(2, 3, 6, 5)), "key: head_dim must be 4, got 5"),
        (dict(value=(1, 3, 6, 4)), "value: batch must be 2, got 1"),
        (dict(value=(2, 1, 6, 4)), "value: heads must be 3, got 1"),
        (dict(value=(2, 3, 7, 4)), "value: keys must be 6, got 7"),
        (dict(value=(2, 3, 5, 4)), "value: keys must be 6, got 5"),
        (dict(mask=(3, 1, 1, 6)), "mask must be broadcastable.* batch must be 1 or 2"),
        (dict(mask=(2, 2, 1, 6)), "mask must be broadcastable.* heads must be 1 or 3"),
        (dict(mask=(4, 6)), "mask must be broadcastable.* queries must be 1 or 5"),
        (dict(mask=(7,)), "mask must be broadcastable.* keys must be 1 or 6"),
        (dict(bias=(2, 5, 6)), "bias must be broadcastable.* heads must be 1 or 3"),
        (dict(bias=(1, 1, 1, 5, 6)), "bias must be of 4 axes at most"),
    ],
)
@pytest.mark.parametrize("explicit", [False, True])
def test_attend_names_the_axis_that_does_not_agree(changed, words, explicit):
    shapes = dict(query=(2, 3, 5, 4), key=(2, 3, 6, 4), value=(2, 3, 6, 4)) | changed
    inputs = {name: ones(*shape) if name == "mask" else torch.randn(shape) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=words):
        attend(**inputs, return_weights=explicit)


@pytest.mark.parametrize("explicit", [False, True])
def test_masks_and_biases_of_few_axes_are_for_all(explicit):
    x, options = torch.randn(2, 3, 5, 4), dict(return_weights=explicit)
    plain = attend(x, x, x, **options)[0]
    for shape in ((), (5,)):
        every, same = torch.ones(shape, dtype=torch.bool), torch.full(shape, 2.0)
        for given in ((every, same), (every, None), (None, same)):
            torch.testing.assert_close(attend(x, x, x, *given, **options)[0], plain)
    assert not attend(x, x, x, torch.tensor(False), **options)[0].any()


@pytest.mark.parametrize("explicit", [False, True])
def test_values_may_have_another_number_of_features(explicit):
    q, k, v = (torch.randn(2, 3, n, d, dtype=torch.float64, requires_grad=True) for n, d in ((5, 4), (6, 4), (6, 7)))
    found, _ = attend(q, k, v, return_weights=explicit)
    expected = (q / 2 @ k.mT).softmax(-1) @ v
    torch.testing.assert_close(found, expected)
    first, theirs = (torch.autograd.grad(x.pow(3).sum(), (q, k, v), create_graph=True) for x in (found, expected))
    second, those = (torch.autograd.grad(sum(g.square().sum() for g in x), (q, k, v)) for x in (first, theirs))
    torch.testing.assert_close((*first, *second), (*theirs, *those))


def test_attend_refuses_masks_and_biases_of_another_dtype():
    x = torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match="mask must be boolean, True where a query may attend, got torch"):
        attend(x, x, x, torch.zeros(3, 3))
    with pytest.raises(ValueError, match="bias must be floating point, got torch"):
        attend(x, x, x, bias=ones(3, 3))


def filled(cache, *shape):
    attention(causal=True, window=3)(torch.randn(*shape, 12, dtype=torch.float64), cache=cache)
    return cache


@pytest.mark.parametrize(
    ("options", "inputs", "words"),
    [
        ({}, lambda x: dict(key=x[:1]), "key: batch must be 2, got 1"),
        ({}, lambda x: dict(key=x, value=x[:1]), "value: batch must be 2, got 1"),
        ({}, lambda x: dict(key=x, value=x[:, :4]), "value: keys must be 5, got 4"),
        ({}, lambda x: dict(mask=ones(3, 1, 1, 5)), "mask .* batch must be 1 or 2"),
        ({}, lambda x: dict(mask=ones(2, 3, 1, 5)), "mask .* heads must be 1 or 4"),
        ({}, lambda x: dict(mask=ones(4, 5)), "mask .* queries must be 1 or 5"),
        (dict(causal=True), lambda x: dict(mask=ones(3, 1, 1, 5), cache=Cache(5)), "mask .* batch must be 1 or 2"),
        (dict(position_bias=ALiBi(1)), lambda x: {}, "position_bias: heads must be 4, got 1"),
        (dict(position_bias=RelativeBias(8)), lambda x: {}, "position_bias: heads must be 4, got 8"),
        ({}, lambda x: dict(positions=torch.arange(4)), "positions: queries must be 5, got 4"),
        ({}, lambda x: dict(positions=torch.zeros(3, 5, dtype=torch.long)), "positions: batch must be 2, got 3"),
        ({}, lambda x: dict(positions=torch.zeros(2, 5)), "positions must be integers"),
        ({}, lambda x: dict(key=x, positions=torch.arange(5)), "key must be None where there are positions"),
        (
            dict(causal=True, position_bias=ALiBi(4)),
            lambda x: dict(cache=Cache(5), positions=torch.arange(5)),
            "positions must be None with a cache and a position_bias",
        ),
        (dict(causal=True), lambda x: dict(cache=filled(Cache(9), 3, 1)), "cache: batch must be 2, got 3"),
        (dict(causal=True, kv_heads=2), lambda x: dict(cache=filled(SharedCache(9), 2, 1)), "cache: kv_heads must be 2, got 4"),
        (dict(causal=True, head_dim=2), lambda x: dict(cache=filled(Cache(9), 2, 1)), "cache: head_dim must be 2, got 3"),
        (dict(causal=True), lambda x: dict(cache=Cache(9, torch.tensor([0]))), "start of the cache: batch must be 2, got 1"),
        (
            dict(causal=True),
            lambda x: dict(cache=RollingCache(9)),
            "cache must be a RollingCache of .* window, None",
        ),
        (dict(causal=True, window=4), lambda x: dict(cache=RollingCache(3)), "cache must be .* window, 4, or more, got 'Rolling"),
    ],
)
def test_sizes_that_do_not_agree_are_named(options, inputs, words):
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    with pytest.raises(ValueError, match=words):
        attention(**options)(x, **inputs(x))


def test_a_cross_cache_of_another_memory_is_refused():
    block, x, cache = attention(), torch.randn(3, 5, 12, dtype=torch.float64), CrossCache()
    block(x[:2], x[:2], cache=cache)
    with pytest.raises(ValueError, match="cache: batch must be 3, got 2"):
        block(x, x, cache=cache)
    with pytest.raises(ValueError, match="cache: keys must be 4, got 5"):
        block(x[:2], x[:2, :4], cache=cache)
    with pytest.raises(ValueError, match="cache: kv_heads must be 2, got 4"):
        attention(kv_heads=2)(x[:2], x[:2], cache=cache)


def test_a_cache_of_another_dtype_is_refused_and_left_alone():
    block, cache = attention(causal=True), Cache(5)
    block(torch.randn(2, 3, 12, dtype=torch.float64), cache=cache)
    with pytest.raises(ValueError, match="cache must be of the new keys' torch"):
        block.float()(torch.randn(2, 1, 12), cache=cache)
    assert int(cache.length) == 3


# ---------------------------------------------------------------------------- pasts of unequal length, and going back


class Absolute(nn.Module):
    """Unlike all that follow, not the same for positions that are all further on."""

    def __init__(self):
        super().__init__()
        self.sines = Sinusoidal(4)

    def forward(self, x, positions):
        return x + self.sines(positions, x.dtype).unsqueeze(-3)


POSITIONED = {
    "no positions": dict,
    "absolute": lambda: dict(positions=Absolute()),
    "rotary": lambda: dict(positions=Rotary(4)),
    "scaled rotary": lambda: dict(positions=Rotary(4, 100.0, scaling=Llama3Scaling(original_length=8))),
    "ALiBi": lambda: dict(position_bias=ALiBi(4)),
    "relative bias": lambda: dict(position_bias=RelativeBias(4, buckets=8, max_distance=20, bidirectional=False)),
}
CACHES = {"Cache": Cache, "SharedCache": SharedCache, "RollingCache": lambda capacity, start=None: RollingCache(4, start)}


def decoder(name):
    """With values that show every position: a bias that starts small would hardly."""
    torch.manual_seed(0)
    block = MultiHeadAttention(12, 4, head_dim=4, kv_heads=2, causal=True, window=4, **POSITIONED[name]()).double().eval()
    if isinstance(block.position_bias, RelativeBias):
        nn.init.normal_(block.position_bias.table.weight)
    return block


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("name", POSITIONED)
def test_rows_of_unequal_pasts_decode_as_alone(name, kind):
    """Whatever the padding holds, through a piece that is all padding for one row, and through `select`."""
    block, starts = decoder(name), torch.tensor([0, 4, 2])
    x = torch.randn(3, 7, 12, dtype=torch.float64)
    for row, start in enumerate(starts):
        x[row, :start] = float("nan")
    cache = CACHES[kind](20, starts)
    with torch.no_grad():
        found = torch.cat([block(piece, cache=cache) for piece in x.split([4, 1, 2], 1)], 1)
        assert found.isfinite().all()
        for row, start in enumerate(starts):
            torch.testing.assert_close(found[row, start:], block(x[row : row + 1, start:])[0])
        rows = torch.tensor([2, 0, 1, 1])
        cache.select(rows)
        new = torch.randn(4, 3, 12, dtype=torch.float64)
        found = torch.cat([block(piece, cache=cache) for piece in new.split([1, 2], 1)], 1)
        for n, row in enumerate(rows):
            whole = torch.cat([x[row, starts[row] :], new[n]])
            torch.testing.assert_close(found[n], block(whole[None])[0, -3:])


@pytest.mark.parametrize("kind", ["Cache", "SharedCache"])
@pytest.mark.parametrize("name", POSITIONED)
def test_going_back_equals_never_having_gone_forward(name, kind):
    block, x = decoder(name), torch.randn(3, 40, 12, dtype=torch.float64)
    for starts in (None, torch.tensor([0, 2, 1])):
        for length in (0, 3, 5, 20):
            if starts is not None and length == 0:
                continue
            gone, fresh = CACHES[kind](60, starts), CACHES[kind](60, starts)
            with torch.no_grad():
                block(x[:, :3], cache=gone)
                if kind == "SharedCache":
                    gone.select(torch.tensor([0, 1, 2]))
                block(x[:, 3:20], cache=gone)
                gone.truncate(length)
                if length:
                    block(x[:, :length], cache=fresh)
                for piece in x[:, 20:].split([1, 4, 15], 1):
                    torch.testing.assert_close(block(piece, cache=gone), block(piece, cache=fresh))
            assert int(gone.length) == length + 20


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("name", POSITIONED)
def test_each_row_goes_back_by_itself(name, kind):
    """As where a guess of several tokens is right for some rows up to here, for others up to there."""
    block, x = decoder(name), torch.randn(3, 6, 12, dtype=torch.float64)
    for starts in (torch.tensor([0, 0, 0]), torch.tensor([0, 2, 1])):
        cache = RollingCache(8, starts) if kind == "RollingCache" else CACHES[kind](20, starts)
        with torch.no_grad():
            block(x, cache=cache)
            kept = torch.tensor([3, 5, 4])
            cache.truncate(kept)
            assert int(cache.length) == 5
            new = torch.randn(3, 4, 12, dtype=torch.float64)
            found = torch.cat([block(piece, cache=cache) for piece in new.split([1, 3], 1)], 1)
            for row, (start, length) in enumerate(zip(starts, kept, strict=True)):
                whole = torch.cat([x[row, start:length], new[row]])
                torch.testing.assert_close(found[row], block(whole[None])[0, -4:])


def test_a_rolling_cache_goes_back_as_far_as_it_remembers():
    block, x = attention(causal=True, window=3), torch.randn(2, 8, 12, dtype=torch.float64)
    new = torch.randn(2, 6, 12, dtype=torch.float64)
    with torch.no_grad():
        for length in range(9):
            cache = RollingCache(5)
            block(x, cache=cache)
            if length < 5:  # of the slots 3 to 7 that are left, the next query sees length - 2 and length - 1
                with pytest.raises(ValueError, match=f"length must be 5 or more, .*3 have been dropped, got {length}"):
                    cache.truncate(length)
                length = 8
            cache.truncate(length)
            found = torch.cat([block(new[:, i : i + 1], cache=cache) for i in range(6)], 1)
            torch.testing.assert_close(found, block(torch.cat([x[:, :length], new], 1))[:, length:])
        cache = RollingCache(5)
        block(x[:, :5], cache=cache)
        cache.truncate(1)  # nothing has been dropped yet
        torch.testing.assert_close(block(new, cache=cache), block(torch.cat([x[:, :1], new], 1))[:, 1:])
        cache = RollingCache(5)
        block(x, cache=cache)
        cache.truncate(6)
        with pytest.raises(ValueError, match="slots below 3 have been dropped, got 4"):
            cache.truncate(4)


@pytest.mark.parametrize("length", [-1, 5, 1.0, torch.tensor([1, 5]), torch.tensor([1, 2, 3]), 0, torch.tensor([4, 0])])
def test_lengths_that_cannot_be_gone_back_to_are_refused(length):
    cache = Cache(9, torch.tensor([0, 1]))
    attention(causal=True)(torch.randn(2, 4, 12, dtype=torch.float64), cache=cache)
    keys = cache.keys.clone()
    with pytest.raises(ValueError, match="length"):
        cache.truncate(length)
    assert int(cache.length) == 4
    assert torch.equal(cache.keys, keys)
    assert cache.start.tolist() == [0, 1]


class Elsewhere(torch.Tensor):
    """Integers on another device: they meet none of this one before they are moved."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            out = function(*args, **(kwargs or {}))
            if not isinstance(out, torch.Tensor):
                return out
            if function is torch.Tensor.to:
                return out.as_subclass(torch.Tensor)
            here = [x for x in args if isinstance(x, torch.Tensor) and not isinstance(x, Elsewhere) and x.ndim > 0]
            assert not here, "all tensors must be on the same device"
            return out.as_subclass(cls)


@pytest.mark.parametrize("kind", CACHES)
def test_lengths_and_starts_come_from_any_device(kind):
    block, x = attention(causal=True, window=3), torch.randn(3, 6, 12, dtype=torch.float64)
    found = []
    for cls in (torch.Tensor, Elsewhere):
        start, length = (torch.tensor(n).as_subclass(cls) for n in ([0, 2, 1], [3, 5, 4]))
        cache = CACHES[kind](20, start)
        with torch.no_grad():
            block(x[:, :5], cache=cache)
            cache.truncate(length)
            found.append(block(x[:, 5:], cache=cache))
        assert type(cache.start) is torch.Tensor
    assert torch.equal(*found)


@pytest.mark.parametrize("name", POSITIONED)
def test_packed_documents_and_left_padding_attend_as_alone(name):
    """The caller gives the positions, of which the attention has no other way to know."""
    block, x = decoder(name), torch.randn(2, 7, 12, dtype=torch.float64)
    documents = torch.tensor([[0, 0, 1, 1, 1, 1, 2], [5, 5, 5, 5, 5, 3, 3]])
    found = block(x, mask=masks.packed(documents), positions=masks.packed_positions(documents))
    for row in range(2):
        for document in documents[row].unique():
            own = documents[row] == document
            torch.testing.assert_close(found[row, own], block(x[row : row + 1, own])[0])
    real = masks.allowed_from_lengths(torch.tensor([3, 7]), 7, "left")
    found = block(x, mask=masks.for_keys(real), positions=masks.padded_positions(real))
    for row in range(2):
        torch.testing.assert_close(found[row, real[row]], block(x[row : row + 1, real[row]])[0])
    if name != "no positions":
        stretched = block(x[:1], positions=3 * torch.arange(7))
        assert not torch.allclose(stretched, block(x[:1]))
    if name not in ("no positions", "absolute"):
        torch.testing.assert_close(stretched, block(x[:1], positions=3 * torch.arange(7)[None] + 40))


# --------------------------------------------------------------------------------------------- derivatives of derivatives

DIFFERENTIATED = {
    "plain": ({}, {}),
    "causal": (dict(causal=True), {}),
    "masked": ({}, dict(mask=torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 1]]).bool())),
    "grouped": (dict(kv_heads=2, causal=True, window=2), {}),
    "biased": (dict(position_bias=ALiBi(4)), {}),
    "learned bias": (dict(position_bias=RelativeBias(4, buckets=4, max_distance=6).double()), {}),
    "rotary": (dict(head_dim=2, positions=Rotary(2)), {}),
}


def square(block, inputs):
    """Of a third power: second derivatives of a sum of squares would not show its own."""
    return lambda x: block(x, **inputs).pow(3).sum()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is not supported:FutureWarning")
@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_second_and_forward_derivatives(name):
    """Against finite differences of the first derivative, which the kit holds against finite differences too."""
    options, inputs = DIFFERENTIATED[name]
    block = attention(**options)
    run = square(block, inputs)
    x, direction = torch.randn(2, 2, 3, 12, dtype=torch.float64)
    x.requires_grad_()

    def gradient(at):
        at = at.detach().requires_grad_()
        return torch.autograd.grad(run(at), at)[0]

    step = 1e-5
    curved = (gradient(x + step * direction) - gradient(x - step * direction)) / (2 * step)
    first = torch.autograd.grad(run(x), x, create_graph=True)[0]
    torch.testing.assert_close(first, gradient(x), rtol=1e-12, atol=1e-12)
    ways = {
        "double backward": torch.autograd.grad((first * direction).sum(), x, retain_graph=True)[0],
        "again": torch.autograd.grad((first * direction).sum(), x)[0],
        "forward over backward": torch.func.jvp(torch.func.grad(run), (x.detach(),), (direction,))[1],
        "hvp": torch.autograd.functional.hvp(run, x.detach(), direction)[1],
    }
    for way, found in ways.items():
        assert (found - curved).abs().max() < 1e-7 * curved.abs().max(), way
    with torch.no_grad():
        slope = (block(x + step * direction, **inputs) - block(x - step * direction, **inputs)) / (2 * step)
    forward = torch.func.jvp(lambda x: block(x, **inputs), (x.detach(),), (direction,))[1]
    assert (forward - slope).abs().max() < 1e-8 * slope.abs().max()
    with torch.autograd.forward_ad.dual_level():
        dual = block(torch.autograd.forward_ad.make_dual(x.detach(), direction), **inputs)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, forward)


def test_a_gradient_penalty_trains_every_parameter():
    """A third derivative at that, for the penalty's own gradient is penalised; and one tensor as query, key and value."""
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)

    def penalty(fused):
        value = attend(x, x, x, causal=True, return_weights=not fused)[0].pow(3).sum()
        for _ in range(2):
            value = torch.autograd.grad(value, x, create_graph=True)[0].pow(2).sum()
        return torch.autograd.grad(value, x)[0]

    torch.testing.assert_close(penalty(True), penalty(False))
    block = attention(causal=True)
    y = torch.randn(2, 3, 12, dtype=torch.float64, requires_grad=True)
    torch.autograd.grad(block(y).square().sum(), y, create_graph=True)[0].square().sum().backward()
    assert all(p.grad.any() for name, p in block.named_parameters() if name != "output.bias")


def kernels(run):
    with torch.profiler.profile() as profile:
        run()
    return {event.key for event in profile.key_averages()}


def test_ordinary_training_keeps_the_fused_kernel_and_its_bits():
    """With the formula's gradient only where a backward pass is differentiated, and recomputed blocks as they were."""
    q, k, v = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3))
    allowed = torch.rand(2, 1, 5, 5) < 0.7
    allowed[..., 0] = True
    for given, causal in ((None, False), (None, True), (allowed, False)):
        weight = torch.randn(2, 3, 5, 8)
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, given, is_causal=causal)
        used = kernels(lambda m=given, c=causal, w=weight: (attend(q, k, v, m, causal=c)[0] * w).sum().backward())
        assert "aten::_scaled_dot_product_flash_attention_for_cpu_backward" in used
        assert not any("softmax" in kernel for kernel in used)
        for x, g in zip((q, k, v), torch.autograd.grad((expected * weight).sum(), (q, k, v)), strict=True):
            assert torch.equal(x.grad, g)
            x.grad = None
    block, x = attention(causal=True), torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    recomputed = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
    assert torch.equal(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (recomputed, block(x))))


def test_training_keeps_no_more_in_memory_than_the_kernel_does():
    q, k, v = (torch.randn(2, 2, 64, 16, requires_grad=True) for _ in range(3))
    allowed = torch.rand(2, 1, 64, 64) < 0.9
    allowed[..., 0] = True

    def kept(run):
        seen = {}

        def pack(x):
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            output = run()  # alive, so that no address is used again
        assert output.requires_grad
        return sum(seen.values())

    for given, causal in ((None, True), (allowed, False)):
        ours = kept(lambda m=given, c=causal: attend(q, k, v, m, causal=c)[0])
        torchs = kept(lambda m=given, c=causal: torch.nn.functional.scaled_dot_product_attention(q, k, v, m, is_causal=c))
        assert ours <= torchs + (0 if given is None else 2 * 64)  # the rows of the mask that hide everything


# ----------------------------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 40.0, 90.0])
def test_scores_of_half_precision_do_not_overflow(dtype, size):
    """float16 ends at 65,504: q k^T of 64 features of 40 is 102,400, and of 90 its eighth, 64,800, still fits."""
    generator = torch.Generator().manual_seed(0)
    q = torch.full((1, 1, 3, 64), size).to(dtype)
    k, v = q.clone(), torch.randn(1, 1, 3, 64, generator=generator).to(dtype)
    k[:, :, 1] *= -1
    expected = attend(q.double(), k.double(), v.double())[0]
    for explicit in (False, True):
        found, weights = attend(q, k, v, return_weights=explicit)
        assert found.dtype == dtype
        assert weights is None or weights.dtype == dtype
        assert (found.double() - expected).abs().max() < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("given", [torch.float32, None])
def test_scores_do_not_overflow_under_autocast(dtype, given):
    """Which casts the factors of a product back: q k^T / 8 of 64 features of 1,000 is 8,000,000."""
    q = torch.full((1, 1, 3, 64), 1000.0, dtype=given or dtype)
    k, v = q * torch.tensor([[1.0], [-1.0], [1.0]], dtype=q.dtype), torch.randn_like(q)
    expected = attend(q.double(), k.double(), v.double())[0]
    with torch.autocast("cpu", dtype):
        (fused, _), (found, weights) = (attend(q, k, v, return_weights=explicit) for explicit in (False, True))
    assert found.dtype == fused.dtype == dtype
    assert weights.dtype == q.dtype
    assert (found.double() - expected).abs().max() < 8 * torch.finfo(dtype).eps
