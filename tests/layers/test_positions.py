from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch
from angles import angle
from einops import rearrange
from hypothesis import strategies as st
from torch import nn
from transformers import GPTNeoXConfig, LlamaConfig, T5Config
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.gpt_neox import modeling_gpt_neox as gpt_neox
from transformers.models.gptj import modeling_gptj as gptj
from transformers.models.llama import modeling_llama as llama
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.t5.modeling_t5 import T5Attention

from layers.positions import ALiBi, LearnedPositions, RelativeBias, Rotary, Sinusoidal
from layers.rotary_scaling import Llama3Scaling
from layers.testing import Contract, Twin, exercised, initial_distribution, tensor, tokens
from layers.weights import WeightMap

FAR = 128
"""Positions drawn for twins that compute angles in float32: further out their own error would hide ours."""

NO_PARAMETERS = dict.fromkeys(["weights", "parameters_used", "per_sample_gradients"], "it has no parameters")
ANY_SUM = dict.fromkeys(
    ("bad_input", "sizes_agree"), "the sum takes anything that broadcasts; bad positions have tests of their own below"
)


class Embedded(nn.Module):
    """x + positions(at), as models use them: it brings a batch, a dtype and gradients."""

    def __init__(self, positions):
        super().__init__()
        self.positions = positions

    def forward(self, x, at):
        return x + self.positions(at, x.dtype)


class Biased(nn.Module):
    """scores + bias(query positions, key positions), as attention uses them."""

    def __init__(self, bias):
        super().__init__()
        self.bias = bias

    def forward(self, scores, queries, keys):
        return scores + self.bias(queries, keys, scores.dtype)


class Theirs(nn.Module):
    """Their function of the inputs. `to` does not reach what it holds: their tables keep float32, as after `from_pretrained`."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def forward(self, *inputs):
        return self.run(*inputs)


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def paper(a):
    """The 2017 formula, feature by feature."""
    order = [(i // 2, i % 2) for i in range(a.dim)]
    order = order if a.interleaved else sorted(order, key=lambda feature: feature[1])
    wave = (math.sin, math.cos)
    rows = [[wave[odd](angle(p, i, a.dim)) for i, odd in order] for p in range(FAR)]
    table = torch.tensor(rows, dtype=torch.float64)
    return Theirs(lambda x, at: x + table[at].to(x.dtype))


def marian(a):
    table = MarianSinusoidalPositionalEmbedding(FAR, a.dim).create_weight()
    if a.interleaved:
        halves, table = table, torch.empty_like(table)
        table[:, 0::2], table[:, 1::2] = halves[:, : (a.dim + 1) // 2], halves[:, (a.dim + 1) // 2 :]
    return Theirs(lambda x, at: x + table[at].to(x.dtype))


def sinusoidal(**arguments):
    return Embedded(Sinusoidal(**arguments))


sinusoidal_positions = Contract(
    sinusoidal,
    arguments=dict(dim=st.integers(1, 17), interleaved=st.booleans()),
    inputs=lambda a: dict(
        x=tensor("batch n dim", dim=st.just(a.dim), n=st.integers(18, 21), batch=st.integers(22, 24)),
        at=tokens("batch n", FAR) if a.dim % 3 else tokens("n", FAR),
    ),
    outputs=lambda a, s: ("batch", "n", a.dim),
    twins=[
        Twin("paper", build=paper),
        Twin("transformers", build=marian, single_precision="transformers 5.23 marian/modeling_marian.py:89, torch.FloatTensor"),
    ],
    invalid=[(dict(dim=0), "dim")],
    without={**NO_PARAMETERS, **ANY_SUM},
    name="Sinusoidal",
)


class Shifted(nn.Embedding):
    def __init__(self, a):
        super().__init__(a.max_positions + a.offset, a.dim)
        self.offset = a.offset

    def forward(self, positions):
        return super().forward(positions + self.offset)


learned_positions = Contract(
    LearnedPositions,
    arguments=dict(max_positions=st.integers(10, 14), dim=st.integers(1, 9), offset=st.sampled_from([0, 1, 2])),
    inputs=lambda a: dict(positions=tokens("batch n", a.max_positions)),
    outputs=lambda a, s: ("batch", "n", a.dim),
    twins=[Twin("torch", build=Shifted, weights=WeightMap(("table", "")))],
    holds=[exercised(dtype="of the output: below"), initial_distribution(table__weight=lambda a, p: (0.0, 0.02))],
    invalid=[(dict(max_positions=0), "max_positions"), (dict(dim=0), "dim"), (dict(offset=-1), "offset")],
    without={"bad_input": "any number of leading axes will do"},
)


def turned(a):
    """x of a rotary block, and positions for all rows or for each."""
    return dict(
        x=tensor("batch heads length dim", dim=a.dim, batch=st.integers(2, 4), heads=st.integers(1, 3), length=st.integers(3, 6)),
        positions=tokens("batch length" if a._each else "length", FAR),
    )


def llama_rotary(a):
    rope = dict(rope_type="default", rope_theta=a.base)
    if a.scaling:
        s = a.scaling
        rope |= dict(rope_type="llama3", factor=s.factor, low_freq_factor=s.low, high_freq_factor=s.high)
        rope |= dict(original_max_position_embeddings=s.original_length)
    config = LlamaConfig(hidden_size=a.dim, num_attention_heads=1, rope_parameters=rope, max_position_embeddings=8192)
    rotary = llama.LlamaRotaryEmbedding(config)
    return Theirs(lambda x, at: llama.apply_rotary_pos_emb(x, x, *rotary(x, at if at.ndim == 2 else at[None]))[0])


rotary = Contract(
    Rotary,
    defaults=dict(base=(10000.0, "Su et al., 2021, arXiv 2104.09864, 3.2.2")),
    arguments=dict(
        dim=st.sampled_from([8, 10, 16, 32]),
        base=st.sampled_from([100.0, 10000.0, 500000.0]),
        scaling=st.one_of(
            st.none(),
            st.builds(Llama3Scaling, factor=st.sampled_from([8.0, 32.0]), original_length=st.sampled_from([64, 500, 8192])),
            st.just(Llama3Scaling(factor=3.0, low=2.0, high=5.5, original_length=300)),
        ),
        _each=st.booleans(),
    ),
    inputs=turned,
    outputs=lambda a, s: ("batch", "heads", "length", "dim"),
    twins=[
        Twin(
            "llama",
            build=llama_rotary,
            single_precision="transformers 5.23 llama/modeling_llama.py:105 and 111, frequencies and angles in float32",
        )
    ],
    invalid=[
        (dict(dim=0), "dim"),
        (dict(dim=7), "dim"),
        (dict(base=0.0), "base"),
        (dict(rotary_dim=0), "rotary_dim"),
        (dict(rotary_dim=3), "rotary_dim"),
        (dict(rotary_dim=34), "rotary_dim"),
    ],
    without=NO_PARAMETERS,
)


def gpt_neox_rotary(a):
    rope = dict(rope_type="default", rope_theta=a.base, partial_rotary_factor=a.rotary_dim / a.dim)
    rotary = gpt_neox.GPTNeoXRotaryEmbedding(GPTNeoXConfig(hidden_size=a.dim, num_attention_heads=1, rope_parameters=rope))
    assert rotary.inv_freq.shape == (a.rotary_dim // 2,)
    return Theirs(lambda x, at: gpt_neox.apply_rotary_pos_emb(x, x, *rotary(x, at if at.ndim == 2 else at[None]))[0])


partial_rotary = Contract(
    Rotary,
    arguments=dict(
        dim=st.sampled_from([7, 12, 16]),
        base=st.sampled_from([100.0, 10000.0]),
        rotary_dim=st.sampled_from([2, 4, 6]),
        _each=st.booleans(),
    ),
    inputs=turned,
    outputs=lambda a, s: ("batch", "heads", "length", "dim"),
    twins=[
        Twin(
            "gpt_neox",
            build=gpt_neox_rotary,
            single_precision="transformers 5.23 gpt_neox/modeling_gpt_neox.py:86 and 92, frequencies and angles in float32",
        )
    ],
    invalid=[(dict(rotary_dim=18), "rotary_dim")],
    without=NO_PARAMETERS,
    name="PartialRotary",
)


def gptj_rotary(a):
    n = a.rotary_dim
    with default_dtype(torch.float64):  # in which their frequencies have the default dtype, and so do not lose any digits
        table = gptj.create_sinusoidal_positions(FAR, n)
    assert table.dtype == torch.float64

    def run(x, at):
        x = rearrange(x, "b h n d -> b n h d")
        sin, cos = table[at if at.ndim == 2 else at[None]].to(x.dtype).chunk(2, -1)
        x = torch.cat([gptj.apply_rotary_pos_emb(x[..., :n], sin, cos), x[..., n:]], -1)
        return rearrange(x, "b n h d -> b h n d")

    return Theirs(run)


interleaved_rotary = Contract(
    Rotary,
    arguments=dict(
        dim=st.sampled_from([9, 12, 16]), interleaved=True, rotary_dim=st.sampled_from([2, 4, 6, 8]), _each=st.booleans()
    ),
    inputs=turned,
    outputs=lambda a, s: ("batch", "heads", "length", "dim"),
    twins=[Twin("gptj", build=gptj_rotary)],
    invalid=[(dict(rotary_dim=5), "rotary_dim")],
    without=NO_PARAMETERS,
    name="InterleavedRotary",
)


def scores(a):
    few = st.integers(2, 9)
    return dict(
        scores=tensor("batch heads q k", heads=st.just(a.heads), batch=few, q=few, k=few),
        queries=tokens("q", a._places),
        keys=tokens("k", a._places),
    )


PLACES = st.sampled_from([9, FAR])
"""How many there are: of few, a key's is often a query's own."""


def bloom(heads):
    """-slope |q - k| from their slope * k, (1, FAR) for each head: differences along k."""
    alibi = build_alibi_tensor(torch.ones(1, FAR, dtype=torch.long), heads, torch.float32)
    return lambda queries, keys: -(alibi[:, 0, queries][:, :, None] - alibi[:, 0, keys][:, None]).abs()


def bloom_scores(a):
    bias = bloom(a.heads)
    return Theirs(lambda scores, queries, keys: scores + bias(queries, keys).to(scores.dtype))


def alibi(**arguments):
    return Biased(ALiBi(**arguments))


alibi_bias = Contract(
    alibi,
    arguments=dict(heads=st.integers(1, 40), _places=PLACES),
    inputs=scores,
    outputs=lambda a, s: ("batch", "heads", "q", "k"),
    twins=[
        Twin("bloom", build=bloom_scores, single_precision="transformers 5.23 bloom/modeling_bloom.py:47, slopes in float32"),
    ],
    invalid=[(dict(heads=0), "heads")],
    without={**NO_PARAMETERS, **ANY_SUM},
    name="ALiBi",
)


class T5Scores(nn.Module):
    def __init__(self, a):
        super().__init__()
        config = T5Config(
            d_model=4, d_kv=2, num_heads=a.heads, relative_attention_num_buckets=a.buckets,
            relative_attention_max_distance=a.max_distance, is_decoder=not a.bidirectional,
        )  # fmt: skip
        attention = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
        self.relative_attention_bias = attention.relative_attention_bias
        self.attention = [attention]  # whose projections take no part

    def forward(self, scores, queries, keys):
        return scores + self.attention[0].compute_bias(FAR, FAR)[0][:, queries][:, :, keys]


def relative(**arguments):
    return Biased(RelativeBias(**arguments))


relative_bias = Contract(
    relative,
    arguments=dict(
        heads=st.integers(1, 6),
        bidirectional=st.booleans(),
        buckets=lambda a: st.sampled_from([4, 6, 8, 14, 32] if a.bidirectional else [2, 3, 4, 7, 16, 32]),
        max_distance=st.sampled_from([17, 40, 128]),
        _places=PLACES,
    ),
    inputs=scores,
    outputs=lambda a, s: ("batch", "heads", "q", "k"),
    twins=[Twin("t5", build=T5Scores, weights=WeightMap(("bias.table", "relative_attention_bias")))],
    holds=[initial_distribution(bias__table__weight=lambda a, p: (0.0, 0.02))],
    invalid=[
        (dict(heads=0), "heads"),
        (dict(buckets=1), "buckets"),
        (dict(buckets=2, bidirectional=True), "buckets"),
        (dict(buckets=9, bidirectional=True), "buckets"),
        (dict(buckets=32, max_distance=8, bidirectional=True), "max_distance"),
    ],
    without=ANY_SUM,
    name="RelativeBias",
)


# What all of them promise.
BLOCKS = {
    "Sinusoidal": lambda: Sinusoidal(6),
    "LearnedPositions": lambda: LearnedPositions(9, 6),
    "Rotary": lambda: Rotary(6),
    "ALiBi": lambda: ALiBi(6),
    "RelativeBias": lambda: RelativeBias(6),
}


def call(block, positions, **options):
    """Any of the blocks, on positions alone."""
    if isinstance(block, Rotary):
        return block(torch.randn(2, 3, len(positions), block.dim, **options), positions)
    return block(*(positions,) * (2 if isinstance(block, (ALiBi, RelativeBias)) else 1), **options)


@pytest.mark.parametrize("name", BLOCKS)
def test_no_table_waits_in_a_buffer(name):
    assert not list(BLOCKS[name]().buffers())


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_that_are_no_integers_are_refused(name, dtype):
    with pytest.raises(ValueError, match="positions must be integers"):
        call(BLOCKS[name](), torch.arange(4, dtype=dtype))


@pytest.mark.parametrize("name", BLOCKS)
def test_positions_of_32_bits_give_the_same(name):
    block, positions = BLOCKS[name](), torch.tensor([8, 0, 3])
    results = []
    for dtype in (torch.int64, torch.int32):
        torch.manual_seed(0)
        results.append(call(block, positions.to(dtype)))
    assert torch.equal(*results)


@pytest.mark.parametrize("name", BLOCKS)
def test_result_has_the_default_dtype_or_the_one_asked_for(name):
    with default_dtype(torch.float64):
        block = BLOCKS[name]()
        assert call(block, torch.arange(4)).dtype == torch.float64
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert call(block, torch.arange(4), dtype=dtype).dtype == dtype


@pytest.mark.parametrize("name", BLOCKS)
def test_compiles_where_no_dtype_is_given(name):
    block, positions = BLOCKS[name](), torch.arange(4)
    torch.manual_seed(0)
    expected = call(block, positions)
    torch.manual_seed(0)
    torch._dynamo.reset()
    block.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(call(block, positions), expected)


@pytest.mark.parametrize("name", ["Sinusoidal", "LearnedPositions", "ALiBi", "RelativeBias"])
def test_a_step_of_decoding_gets_the_last_row_of_the_whole(name):
    block, positions = BLOCKS[name](), torch.arange(9)
    if name in ("ALiBi", "RelativeBias"):
        last, whole = block(positions[-1:], positions), block(positions, positions)
        assert not torch.equal(block(positions[:1], positions), last)
        assert torch.equal(last, whole[:, -1:])
    else:
        assert not torch.equal(block(positions[:1]), block(positions)[-1:])
        assert torch.equal(block(positions[-1:]), block(positions)[-1:])
