from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
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
from layers.positions import ALiBi, RelativeBias, Rotary
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
        block(x[:, :1], cache=shared)


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
