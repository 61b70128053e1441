from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torchvision.ops import StochasticDepth as TorchvisionDepth

from layers.attention import MultiHeadAttention
from layers.cache import Cache, CrossCache, RollingCache
from layers.feedforward import FeedForward
from layers.positions import Rotary
from layers.testing import (
    Contract,
    Input,
    Twin,
    cache_consistent,
    exercised,
    influence,
    mask,
    padding_invariant,
    permutation_equivariant,
    tensor,
    tokens,
)
from layers.transformer import DecoderBlock, EncoderBlock, PostNorm, PreNorm, SandwichNorm, StochasticDepth
from layers.weights import WeightMap

WIRING = {"post": PostNorm, "pre": PreNorm}


def encoder(dim, heads, hidden_dim, wiring, causal=False, placed=False):
    wrap, norm = WIRING[wiring], partial(nn.LayerNorm, dim)
    attention = MultiHeadAttention(dim, heads, causal=causal, positions=Rotary(dim // heads) if placed and heads else None)
    return EncoderBlock(wrap(attention, norm()), wrap(FeedForward(dim, hidden_dim), norm()))


def decoder(dim, heads, hidden_dim, wiring, placed=False):
    wrap, norm = WIRING[wiring], partial(nn.LayerNorm, dim)
    own = MultiHeadAttention(dim, heads, causal=True, positions=Rotary(dim // heads) if placed and heads else None)
    cross = MultiHeadAttention(dim, heads)
    return DecoderBlock(wrap(own, norm()), wrap(cross, norm()), wrap(FeedForward(dim, hidden_dim), norm()))


def projections(ours, theirs):
    names = [f"{ours}.sublayer.{name}" for name in ("query", "key", "value")]
    return [
        (" ".join(f"{name}.weight" for name in names), f"{theirs}.in_proj_weight", "qkv o i -> (qkv o) i"),
        (" ".join(f"{name}.bias" for name in names), f"{theirs}.in_proj_bias", "qkv o -> (qkv o)"),
        (f"{ours}.sublayer.output", f"{theirs}.out_proj"),
    ]


FEEDFORWARD = (("feedforward.sublayer.up", "linear1"), ("feedforward.sublayer.down", "linear2"))
ENCODER = WeightMap(
    *projections("attention", "self_attn"), *FEEDFORWARD, ("attention.norm", "norm1"), ("feedforward.norm", "norm2")
)
DECODER = WeightMap(
    *projections("attention", "self_attn"), *projections("cross_attention", "multihead_attn"), *FEEDFORWARD,
    ("attention.norm", "norm1"), ("cross_attention.norm", "norm2"), ("feedforward.norm", "norm3"),
)  # fmt: skip


def theirs(kind):
    return lambda a: kind(
        a.dim, a.heads, a.hidden_dim, dropout=0.0, batch_first=True, norm_first=a.wiring == "pre"
    )  # with gradients on, so that there is no fast path


sizes = dict(
    heads=st.integers(1, 3),
    _head_dim=st.sampled_from([4, 6]),  # a layer norm of two features is little more than the sign of their difference
    dim=lambda a: a.heads * a._head_dim,
    hidden_dim=st.integers(13, 15),
    wiring=st.sampled_from(["post", "pre"]),
)
INVALID = [(dict(heads=0), "heads"), (dict(hidden_dim=0), "hidden_dim")]
WITHOUT = {"bad_input": "the attention and the norms name their own inputs"}


class WrittenSandwich(nn.Module):
    """CogView's sentence: a norm before the layer, another one on what it gives, then the residual sum."""

    def __init__(self, a):
        super().__init__()
        self.before, self.layer, self.behind = nn.LayerNorm(a.dim), nn.Linear(a.dim, a.dim), nn.LayerNorm(a.dim)

    def forward(self, x):
        return self.behind(self.layer(self.before(x))) + x


sandwich_norm = Contract(
    lambda dim: SandwichNorm(nn.Linear(dim, dim), nn.LayerNorm(dim), nn.LayerNorm(dim)),
    arguments=dict(dim=st.integers(4, 6)),
    inputs=lambda a: dict(x=tensor("batch n dim", dim=a.dim)),
    outputs=lambda a, s: ("batch", "n", a.dim),
    twins=[
        Twin(
            "written down",
            build=WrittenSandwich,
            weights=WeightMap(("norm", "before"), ("sublayer", "layer"), ("after", "behind")),
        )
    ],
    holds=[permutation_equivariant("x", "n", 1)],
    name="SandwichNorm",
    without={
        "bad_input": "the layers name their own inputs",
        "sizes_agree": "there is one input",
        "bad_argument": "it takes modules",
    },
)

encoder_block = Contract(
    encoder,
    arguments=sizes,
    inputs=lambda a: dict(x=tensor("batch n dim", dim=a.dim)),
    outputs=lambda a, s: ("batch", "n", a.dim),
    twins=[Twin("torch", build=theirs(nn.TransformerEncoderLayer), weights=ENCODER)],
    holds=[
        permutation_equivariant("x", "n", 1),
        padding_invariant("x", "n", 1),
        exercised(real="it makes rows of another number: tests/layers/test_padding.py"),
    ],
    invalid=INVALID,
    without=WITHOUT,
    name="EncoderBlock",
)

causal_block = Contract(
    encoder,
    arguments=sizes | dict(causal=True),
    inputs=lambda a: dict(x=tensor("batch n dim", dim=a.dim)),
    outputs=lambda a, s: ("batch", "n", a.dim),
    twins=[
        Twin(
            "torch",
            build=theirs(nn.TransformerEncoderLayer),
            weights=ENCODER,
            call=lambda m, i: m(i["x"], src_mask=torch.ones(i["x"].shape[1], i["x"].shape[1], dtype=torch.bool).triu(1)),
        )
    ],
    holds=[
        influence("causal", "x", "n", lambda a, i, o: i <= o, 1),
        padding_invariant("x", "n", 1),
        cache_consistent("x", "n", 1, lambda a, n: Cache(n)),
    ],
    invalid=INVALID,
    without=WITHOUT,
    name="CausalBlock",
)


placed_block = Contract(
    encoder,
    arguments=sizes | dict(placed=True, causal=st.booleans()),
    inputs=lambda a: dict(x=tensor("batch n dim", dim=a.dim), mask=mask("batch 1 1 n"), positions=tokens("batch n", 20)),
    outputs=lambda a, s: ("batch", "n", a.dim),
    invalid=INVALID,
    without=WITHOUT | {"sizes_agree": "a mask calls its axis keys: see the sizes below"},
    name="PlacedBlock",
)


def some_keys(shape, generator):
    """The mask of a memory that is padded on the right; a row without any key is NaN to torch."""
    return torch.arange(shape[-1]) < torch.randint(1, shape[-1] + 1, (shape[0], 1, 1, 1), generator=generator)


decoder_block = Contract(
    decoder,
    arguments=sizes,
    inputs=lambda a: dict(
        x=tensor("batch n dim", dim=a.dim),
        memory=tensor("batch k dim", dim=a.dim),
        memory_mask=Input(("batch", "1", "1", "k"), {}, some_keys, broadcasts=True),
    ),
    outputs=lambda a, s: ("batch", "n", a.dim),
    twins=[
        Twin(
            "torch",
            build=theirs(nn.TransformerDecoderLayer),
            weights=DECODER,
            call=lambda m, i: m(
                i["x"],
                i["memory"],
                tgt_mask=torch.ones(i["x"].shape[1], i["x"].shape[1], dtype=torch.bool).triu(1),
                memory_key_padding_mask=~i["memory_mask"][:, 0, 0],
            ),
        )
    ],
    holds=[
        influence("causal", "x", "n", lambda a, i, o: i <= o, 1),
        cache_consistent("x", "n", 1, lambda a, n: (Cache(n), CrossCache())),
    ],
    invalid=INVALID,
    without=WITHOUT,
    name="DecoderBlock",
)

placed_decoder_block = Contract(
    decoder,
    arguments=sizes | dict(placed=True),
    inputs=lambda a: dict(
        x=tensor("batch n dim", dim=a.dim),
        memory=tensor("batch k dim", dim=a.dim),
        mask=mask("batch 1 1 n"),
        memory_mask=mask("batch 1 1 k"),
        positions=tokens("batch n", 20),
    ),
    outputs=lambda a, s: ("batch", "n", a.dim),
    invalid=INVALID,
    without=WITHOUT | {"sizes_agree": "a mask calls its axis keys: see the sizes below"},
    name="PlacedDecoderBlock",
)

stochastic_depth = Contract(
    StochasticDepth,
    arguments=dict(p=st.sampled_from([0.0, 0.25, 0.5])),
    inputs=lambda a: dict(x=tensor("batch n dim")),
    outputs=lambda a, s: ("batch", "n", "dim"),
    twins=[Twin("torchvision", build=lambda a: TorchvisionDepth(a.p, "row"))],
    trains_differently=lambda a: False,
    stochastic=lambda a: a.p > 0,
    invalid=[(dict(p=1.0), "p"), (dict(p=-0.1), "p")],
    without={
        "bad_input": "any shape will do",
        "parameters_used": "there are none",
        "weights": "there are none",
        "per_sample_gradients": "there are no parameters",
        "train_eval": "a draw may keep every row: see the statistics below",
    },
)


@pytest.mark.parametrize("p", [0.0, 0.2, 0.7])
def test_stochastic_depth_drops_rows_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(20_000, 3)
    y = StochasticDepth(p).train()(x)
    rows = y[:, 0]
    assert (y == rows[:, None]).all()
    assert set(rows.unique().tolist()) <= {0.0, torch.tensor(1 / (1 - p)).item()}
    assert rows.mean().item() == pytest.approx(1.0, abs=0.05)
    assert (rows == 0).double().mean().item() == pytest.approx(p, abs=0.02)


def test_wiring_drops_the_sublayer_not_the_residual():
    x, norm = torch.randn(2, 3, 4), nn.LayerNorm(4)
    dropped = nn.Dropout(0.999999)
    torch.manual_seed(0)
    assert torch.equal(PreNorm(nn.Linear(4, 4), norm, dropped).train()(x), x)
    assert torch.equal(PostNorm(nn.Linear(4, 4), norm, dropped).train()(x), norm(x))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (dict(memory=torch.randn(1, 5, 12)), "memory: batch must be 2, got 1"),
        (dict(memory=torch.randn(2, 12)), "memory must have 3 axes"),
        (dict(x=torch.randn(2, 12)), "x must have 3 axes"),
        (dict(memory_mask=torch.ones(3, 1, 1, 5) > 0), "memory_mask must be .* batch must be 1 or 2"),
        (dict(memory_mask=torch.ones(2, 1, 1, 4) > 0), "memory_mask must be .* keys must be 1 or 5"),
        (dict(mask=torch.ones(3, 1, 1, 4) > 0), "mask must be .* batch must be 1 or 2"),
        (dict(positions=torch.zeros(3, 4, dtype=torch.long)), "positions: batch must be 2, got 3"),
    ],
)
def test_sizes_that_do_not_agree_are_named(changed, words):
    block = decoder(12, 3, 20, "pre")
    with pytest.raises(ValueError, match=words):
        block(**(dict(x=torch.randn(2, 4, 12), memory=torch.randn(2, 5, 12)) | changed))


def test_a_memory_mask_may_have_two_axes():
    block, x, memory = decoder(12, 3, 20, "pre").double(), torch.randn(2, 4, 12).double(), torch.randn(2, 5, 12).double()
    allowed = torch.arange(20).reshape(4, 5) % 3 > 0
    torch.testing.assert_close(block(x, memory, memory_mask=allowed), block(x, memory, memory_mask=allowed[None, None]))
    for wrong in (allowed[0], allowed[None, None, None]):
        with pytest.raises(ValueError, match="memory_mask must be of 2 to 4 axes"):
            block(x, memory, memory_mask=wrong)


@pytest.mark.parametrize("wiring", WIRING)
def test_positions_reach_the_self_attention(wiring):
    """And blocks whose attention takes none are called without, unless there are some."""
    x, memory, at = torch.randn(2, 4, 12), torch.randn(2, 5, 12), torch.tensor([[0, 0, 1, 2], [3, 4, 5, 6]])
    wrap, rotary = WIRING[wiring], Rotary(4)
    own, cross = MultiHeadAttention(12, 3, causal=True, positions=rotary), MultiHeadAttention(12, 3)
    network = wrap(FeedForward(12, 20), nn.LayerNorm(12))
    blocks = [
        (EncoderBlock(wrap(own, nn.LayerNorm(12)), network), (x,)),
        (DecoderBlock(wrap(own, nn.LayerNorm(12)), wrap(cross, nn.LayerNorm(12)), network), (x, memory)),
    ]
    for block, inputs in blocks:
        assert torch.equal(block(*inputs, positions=torch.arange(4)), block(*inputs))
        for row in range(2):
            single = [i[row : row + 1] for i in inputs]
            torch.testing.assert_close(block(*inputs, positions=at)[row], block(*single, positions=at[row])[0])
        assert not torch.allclose(block(*inputs, positions=at)[0], block(*inputs)[0])

    class Plain(nn.Module):
        def forward(self, x, mask=None, cache=None):
            return x

    assert EncoderBlock(Plain(), nn.Identity())(x) is x


@pytest.mark.parametrize("capacity", [0, -1])
@pytest.mark.parametrize("kind", [Cache, RollingCache])
def test_bad_capacities_are_named(kind, capacity):
    with pytest.raises(ValueError, match="capacity must be positive"):
        kind(capacity)
