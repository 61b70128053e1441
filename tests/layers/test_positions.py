from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch
from einops import rearrange
from hypothesis import strategies as st
from torch import nn
from transformers import GPTNeoXConfig, LlamaConfig, T5Config
from transformers.models.bart.modeling_bart import BartLearnedPositionalEmbedding
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.gpt_neox import modeling_gpt_neox as gpt_neox
from transformers.models.gptj import modeling_gptj as gptj
from transformers.models.llama import modeling_llama as llama
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.t5.modeling_t5 import T5Attention

from layers.positions import ALiBi, LearnedPositions, Llama3Scaling, RelativeBias, Rotary, Sinusoidal
from layers.testing import Contract, Twin, require_equal, tensor, tokens
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


def angle(position, i, dim, base=10000.0):
    """Of the i-th pair of features, in Python's own floats."""
    return position / base ** (2 * i / dim)


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
        queries=tokens("q", FAR),
        keys=tokens("k", FAR),
    )


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
    arguments=dict(heads=st.integers(1, 40)),
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
    ),
    inputs=scores,
    outputs=lambda a, s: ("batch", "heads", "q", "k"),
    twins=[Twin("t5", build=T5Scores, weights=WeightMap(("bias.table", "relative_attention_bias")))],
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


# Sinusoidal and LearnedPositions


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_sines_are_exact_far_out(interleaved, dtype):
    block = nn.Sequential(Sinusoidal(65, interleaved)).to(torch.bfloat16)[0]
    positions = [99_999, 100_000, 1_000_003]
    found = block(torch.tensor(positions), dtype)
    sines = torch.tensor([[math.sin(angle(p, i, 65)) for i in range(33)] for p in positions], dtype=torch.float64)
    cosines = torch.tensor([[math.cos(angle(p, i, 65)) for i in range(32)] for p in positions], dtype=torch.float64)
    ours = (found[:, 0::2], found[:, 1::2]) if interleaved else (found[:, :33], found[:, 33:])
    for x, truth in zip(ours, (sines, cosines), strict=True):
        unit = torch.finfo(dtype).eps / 2  # one rounding, and an angle that Python's floats and torch's may round differently
        torch.testing.assert_close(x.double(), truth, rtol=1.01 * unit, atol=1e-9)


def test_learned_positions_equal_barts():
    ours, theirs = LearnedPositions(9, 6, offset=2), BartLearnedPositionalEmbedding(9, 6)
    WeightMap(("table", "")).load(ours, theirs.state_dict())
    assert torch.equal(ours(torch.arange(9)), theirs(torch.zeros(1, 9))[0])
    assert torch.equal(ours(torch.tensor([4])), theirs(torch.zeros(1, 1), 4)[0])


@pytest.mark.parametrize(
    "block", [LearnedPositions(500, 64), RelativeBias(64, buckets=500, max_distance=1000)], ids=lambda block: type(block).__name__
)
def test_tables_start_small(block):
    assert block.table.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("offset", [0, 2])
def test_positions_past_the_table_are_refused(offset):
    block = LearnedPositions(5, 3, offset)
    assert block(torch.arange(5)).shape == (5, 3)
    assert block(torch.arange(12) % 5).shape == (12, 3)  # of several documents or rows, one after the other
    with pytest.raises(ValueError, match="from 0 to 4, got 0 to 5"):
        block(torch.arange(6))
    with pytest.raises(ValueError, match="from 0 to 4, got 3 to 5"):
        block(torch.tensor([3, 5]))
    with pytest.raises(ValueError, match="from 0 to 4, got -3 to 4"):
        block(torch.tensor([-3, 4]))


# Rotary


def pairs(x, interleaved):
    return (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("how", ["float64", "float32", "to(bfloat16)", "half()", "autocast"])
def test_rotation_is_exact_far_out(interleaved, how):
    block = nn.ModuleList([Rotary(64, 500000.0, interleaved)])
    dtype = {"to(bfloat16)": torch.bfloat16, "half()": torch.float16, "float64": torch.float64}.get(how, torch.float32)
    block = block.half() if how == "half()" else block.to(dtype)
    positions = [0, 1, 99_999, 100_000, 1_000_003]
    x = torch.randn(2, 3, len(positions), 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        found = block[0](x, torch.tensor(positions))
    assert found.dtype == dtype
    angles = [[angle(p, i, 64, 500000.0) for i in range(32)] for p in positions]
    cos = torch.tensor([[math.cos(a) for a in row] for row in angles], dtype=torch.float64)
    sin = torch.tensor([[math.sin(a) for a in row] for row in angles], dtype=torch.float64)
    first, second = pairs(x.double(), interleaved)
    unit = torch.finfo(dtype).eps / 2
    inner = 1e-9 if dtype == torch.float64 else 1e-6  # products in float32 at least: their own few roundings
    for ours, truth in zip(pairs(found, interleaved), (first * cos - second * sin, second * cos + first * sin), strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=1.01 * unit, atol=inner)


ROTARIES = {
    "half-split": Rotary(16),
    "interleaved": Rotary(16, interleaved=True),
    "partial": Rotary(16, rotary_dim=6),
    "partial, interleaved": Rotary(16, interleaved=True, rotary_dim=6),
    "scaled": Rotary(16, base=100.0, scaling=Llama3Scaling(original_length=64)),
}


def score(block, query_position, key_position):
    q, k = torch.randn(2, 1, 3, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return (block(q, torch.tensor([query_position])) * block(k, torch.tensor([key_position]))).sum(-1)


@pytest.mark.parametrize("name", ROTARIES)
def test_scores_depend_on_the_difference_of_positions_alone(name):
    expected = score(ROTARIES[name], 7, 3)
    for shift in (1, 50, 4000, 100_000):
        require_equal(score(ROTARIES[name], 7 + shift, 3 + shift), expected, 1e-10)
    for query, key in ((7, 4), (8, 3), (3, 7), (7, 7)):  # the other way round too
        assert (score(ROTARIES[name], query, key) - expected).abs().min() > 1e-4


@pytest.mark.parametrize("name", ROTARIES)
def test_norms_stay_and_position_0_turns_nothing(name):
    block, x = ROTARIES[name], torch.randn(2, 3, 5, 16, dtype=torch.float64)
    found = block(x, torch.tensor([0, 1, 20, 300, 100_000]))
    require_equal(found.norm(dim=-1), x.norm(dim=-1), 1e-14)
    assert torch.equal(found[:, :, 0], x[:, :, 0])
    assert not torch.isclose(found[:, :, 1:, : block.rotary_dim], x[:, :, 1:, : block.rotary_dim]).all(-1).any()
    assert torch.equal(found[..., block.rotary_dim :], x[..., block.rotary_dim :])


def test_interleaved_is_half_split_with_features_permuted():
    x, positions = torch.randn(2, 3, 5, 16, dtype=torch.float64), torch.tensor([3, 1, 4, 15, 926])
    permuted = rearrange(x, "... (f pair) -> ... (pair f)", pair=2)
    expected = rearrange(Rotary(16)(permuted, positions), "... (pair f) -> ... (f pair)", pair=2)
    assert torch.equal(Rotary(16, interleaved=True)(x, positions), expected)
    assert not torch.equal(Rotary(16)(x, positions), expected)


@pytest.mark.parametrize("name", ROTARIES)
def test_each_row_turns_by_its_own_positions(name):
    block, x = ROTARIES[name], torch.randn(3, 2, 5, 16, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 3, 4], [0, 0, 0, 1, 2], [7, 8, 9, 10, 11]])  # the second one is padded on the left
    whole = block(x, positions)
    for row, expected, at in zip(x, whole, positions, strict=True):
        assert torch.equal(block(row[None], at)[0], expected)
    for i in range(5):  # and one position at a time, as in decoding
        assert torch.equal(block(x[:, :, i : i + 1], positions[:, i : i + 1]), whole[:, :, i : i + 1])
    padded = whole[1, :, 2:]
    assert torch.equal(block(x[1:2, :, 2:], torch.arange(3))[0], padded)
    assert not torch.equal(block(x, positions[0])[1, :, 2:], padded)


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        (torch.arange(4), "positions: length must be 5"),
        (torch.zeros(3, 5, dtype=torch.long), "positions: batch must be 2"),
        (torch.zeros(1, 2, 5, dtype=torch.long), "positions must have 2 axes"),
    ],
)
def test_positions_that_do_not_fit_x_are_refused(positions, words):
    with pytest.raises(ValueError, match=words):
        Rotary(6)(torch.randn(2, 3, 5, 6), positions)


@pytest.mark.parametrize(
    ("name", "value"),
    [("factor", 0.5), ("low", 0.0), ("low", 4.0), ("high", 1.0), ("original_length", 0)],
)
def test_bad_scaling_is_refused(name, value):
    with pytest.raises(ValueError, match=name):
        Llama3Scaling(**{name: value})


# ALiBi and RelativeBias


@pytest.mark.parametrize("heads", range(1, 41))
def test_slopes_equal_blooms_for_every_number_of_heads(heads):
    theirs = build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), heads, torch.float32)[:, 0, 1]
    ours = -ALiBi(heads)(torch.tensor([1]), torch.tensor([0]), torch.float64)[:, 0, 0]
    torch.testing.assert_close(ours, theirs.double(), rtol=2 * heads * 2**-24, atol=0)  # a rounded base to a power up to 2 heads


@pytest.mark.parametrize(
    ("heads", "exponents"),
    [
        (1, [8]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (16, [i / 2 for i in range(1, 17)]),
        (3, [4, 8, 2]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
    ],
)
def test_slopes_are_those_of_the_paper(heads, exponents):
    bias = ALiBi(heads)(torch.tensor([5]), torch.tensor([4, 5, 6, 9]), torch.float64)
    slopes = torch.tensor([2.0**-e for e in exponents], dtype=torch.float64)
    torch.testing.assert_close(bias[:, 0], -slopes[:, None] * torch.tensor([1, 0, 1, 4]), rtol=1e-15, atol=0)


def test_alibi_gives_the_same_causal_weights_as_bloom():
    scores, positions = torch.randn(6, 20, 20, dtype=torch.float64), torch.arange(20)
    causal = torch.ones(20, 20).tril().log()
    ours = scores + ALiBi(6)(positions, positions, torch.float64)
    theirs = scores + build_alibi_tensor(torch.ones(1, 20, dtype=torch.long), 6, torch.float64)
    require_equal((ours + causal).softmax(-1), (theirs + causal).softmax(-1), 1e-5)
    assert not torch.allclose(ours.softmax(-1), theirs.softmax(-1))


def test_alibi_is_exact_far_out():
    for dtype in (torch.float32, torch.bfloat16):
        bias = ALiBi(16)(torch.tensor([1_000_003]), torch.tensor([1_000_000, 900_002]), dtype)
        truth = torch.tensor([[-(2 ** -(i / 2)) * distance for distance in (3, 100_001)] for i in range(1, 17)]).double()
        roundings = 2 if dtype == torch.float32 else 0.51  # of slope and product; half precision comes from float32
        torch.testing.assert_close(bias[:, 0].double(), truth, rtol=roundings * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("max_distance", [40, 100, 128, 512])
@pytest.mark.parametrize("buckets", [4, 10, 30, 32, 64])
def test_buckets_equal_t5s_for_every_distance(bidirectional, max_distance, buckets):
    offset = torch.arange(-4 * max_distance, 4 * max_distance + 1)
    ours = RelativeBias(1, buckets, max_distance, bidirectional).bucket(offset)
    assert torch.equal(ours, T5Attention._relative_position_bucket(offset, bidirectional, buckets, max_distance))
    reached = set(ours.tolist())
    assert min(reached) == 0
    assert max(reached) == buckets - 1


@pytest.mark.parametrize("block", [ALiBi(3), RelativeBias(3)], ids=["ALiBi", "RelativeBias"])
def test_differences_of_small_unsigned_positions_do_not_wrap(block):
    queries, keys = torch.tensor([9, 3, 200]), torch.tensor([2, 8, 250])
    assert torch.equal(block(queries.to(torch.uint8), keys.to(torch.uint8)), block(queries, keys))


def test_biases_depend_on_differences_alone_and_tell_the_sides_apart():
    queries, keys = torch.tensor([9, 3, 40]), torch.tensor([2, 8, 30, 41])
    for block in (ALiBi(3), RelativeBias(3), RelativeBias(3, bidirectional=False)):
        assert torch.equal(block(queries + 1000, keys + 1000), block(queries, keys))
        assert not torch.equal(block(queries + 1, keys), block(queries, keys))
    both, behind = RelativeBias(3), RelativeBias(3, bidirectional=False)
    at, earlier, later = torch.tensor([100]), torch.tensor([70, 99]), torch.tensor([101, 130])
    assert not (both(at, earlier) == both(at, later.flip(0))).any()
    assert not (behind(at, earlier) == behind(at, at)).any()
    assert torch.equal(behind(at, later), behind(at, at).expand(-1, -1, 2))


@pytest.mark.parametrize("block", [ALiBi(3), RelativeBias(3, buckets=8), RelativeBias(3, bidirectional=False)])
def test_biases_of_each_rows_own_positions(block):
    queries, keys = torch.tensor([[9, 3], [0, 40]]), torch.tensor([[2, 8, 30], [41, 0, 7]])
    found = block(queries, keys)
    assert found.shape == (2, 3, 2, 3)
    for row in range(2):
        assert torch.equal(found[row], block(queries[row], keys[row]))
    with pytest.raises(ValueError, match="key_positions: batch must be 2, got 1"):
        block(queries, keys[:1])
    with pytest.raises(ValueError, match="key_positions must have 2 axes"):
        block(queries, keys[0])


def test_relative_bias_in_bfloat16_is_its_table_to_the_bit():
    block, positions = RelativeBias(3), torch.arange(300)
    expected = block(positions, positions).bfloat16()
    assert torch.equal(block.to(torch.bfloat16)(positions, positions), expected)
