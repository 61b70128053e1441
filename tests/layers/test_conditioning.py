from __future__ import annotations

import math

import pytest
import torch
from diffusion_twins import Timesteps, Wide, grid_table, of_diffusers
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from layers.conditioning import (
    ClassEmbedding,
    ModulatedNorm,
    Modulation,
    PatchEmbedding,
    PatchOutput,
    SinusoidalTime,
    TimeEmbedding,
)
from layers.feedforward import FeedForward
from layers.testing import Contract, Input, Twin, exercised, initial_distribution, part, tensor, tokens
from layers.weights import WeightMap

TIMES = Input(("batch",), {}, lambda shape, g: 1000 * torch.rand(shape, generator=g, dtype=torch.float64))
NOTHING_TO_LEARN = dict.fromkeys(("weights", "parameters_used", "per_sample_gradients"), "no parameters")
ANY_NUMBER = {"bad_input": "a batch of any size"}


# --------------------------------------------------------------------------------------------------------------------------- time

SINES = dict(
    cosines_first=st.booleans(),
    frequency_shift=st.sampled_from([0.0, 0.5, 1.0]),
    scale=st.sampled_from([1.0, 1000.0, 0.3]),
)

sines = Contract(
    SinusoidalTime,
    defaults=dict(
        max_period=(10000.0, "arXiv 1706.03762, 3.5"),
        frequency_shift=(1.0, "diffusers' get_timestep_embedding"),
        scale=(1.0, "diffusers' get_timestep_embedding"),
    ),
    arguments=dict(dim=st.integers(4, 11), **SINES),
    holds=[exercised(dtype="of the output: below", max_period="diffusers' has 10000 alone: below")],
    inputs=lambda a: dict(times=TIMES),
    outputs=lambda a, s: ("batch", a.dim),
    twins=[Twin("diffusers", build=lambda a: Timesteps(SinusoidalTime(**a.passed())))],
    invalid=[
        (dict(dim=1), "dim"),
        (dict(dim=2, frequency_shift=1.0), "frequency_shift"),  # 0 / 0
        (dict(frequency_shift=-1.0), "frequency_shift"),
        (dict(scale=0.0), "scale"),
        (dict(max_period=0.0), "max_period"),
    ],
    without=NOTHING_TO_LEARN | ANY_NUMBER,
)


@pytest.mark.parametrize("cosines_first", [False, True])
@pytest.mark.parametrize("frequency_shift", [0.0, 1.0])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("dim", [4, 7, 32])
def test_every_time_is_that_of_diffusers_to_the_last_bit(cosines_first, frequency_shift, scale, dim):
    """Whole steps as integers and as floats, and those of flow matching; and the formula in Python's floats."""
    block = SinusoidalTime(dim, cosines_first=cosines_first, frequency_shift=frequency_shift, scale=scale)
    theirs, steps = Timesteps(block), torch.arange(1000)
    found = block(steps, torch.float64)
    assert torch.equal(found, theirs(steps))
    assert torch.equal(found, block(steps.double()))
    assert torch.equal(block(steps / 1000, torch.float64), theirs(steps / 1000))
    for t, i in ((1, 1), (999, 0), (999, dim // 2 - 1)):
        angle = scale * t * 10000 ** (-i / (dim // 2 - frequency_shift))
        pair = found[t, i].item(), found[t, i + dim // 2].item()
        expected = (math.sin(angle), math.cos(angle))[:: -1 if cosines_first else 1]
        assert pair == pytest.approx(expected, abs=1e-15 * (2 + 16 * angle))
    assert not found[:, dim // 2 * 2 :].any()


def test_times_as_they_come():
    block = SinusoidalTime(6)
    steps = torch.tensor([0, 7, 999])
    assert block(steps).dtype == torch.float32
    assert block(steps, torch.bfloat16).dtype == block(steps.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(block(steps), block(steps, torch.float64).float())  # rounded once
    assert isinstance(steps.as_subclass(Wide)[None].float().double(), torch.Tensor)
    for wrong, word in ((torch.tensor(3), "1 axes"), (steps > 3, "numbers"), (steps[None], "1 axes")):
        with pytest.raises(ValueError, match=f"times must .*{word}"):
            block(wrong)


class TheirTimes(nn.Module):
    def __init__(self, a):
        super().__init__()
        ours = a.sines.factory(**a.sines.arguments)
        self.proj, self.embedder = Timesteps(ours), of_diffusers("embeddings").TimestepEmbedding(ours.dim, a.dim)

    def forward(self, times):
        return self.embedder(self.proj(times).to(self.embedder.linear_1.weight.dtype))


times = Contract(
    TimeEmbedding,
    arguments=dict(
        sines=st.builds(lambda n, first: part(SinusoidalTime, dim=n, cosines_first=first), st.integers(4, 7), st.booleans()),
        dim=st.integers(3, 6),
    ),
    inputs=lambda a: dict(times=TIMES),
    outputs=lambda a, s: ("batch", a.dim),
    twins=[Twin("diffusers", build=TheirTimes, weights=WeightMap(("up", "embedder.linear_1"), ("down", "embedder.linear_2")))],
    invalid=[(dict(dim=0), "dim")],
    without=ANY_NUMBER,
)

# ------------------------------------------------------------------------------------------------------------------------ classes


def their_labels(a):
    """With the row for no class, which theirs lacks without dropout, and without drawing in training."""
    theirs = of_diffusers("embeddings").LabelEmbedding(a.num_classes, a.dim, 0.5)
    theirs.dropout_prob = a.dropout
    return theirs


classes = Contract(
    ClassEmbedding,
    defaults=dict(dropout=(0.1, "Peebles and Xie, 2022, arXiv 2212.09748, code")),
    arguments=dict(num_classes=st.integers(2, 5), dim=st.integers(3, 6), dropout=st.sampled_from([0.0, 0.6])),
    inputs=lambda a: dict(classes=tokens("batch", a.num_classes + 1)),
    outputs=lambda a, s: ("batch", a.dim),
    twins=[Twin("diffusers", build=their_labels, weights=WeightMap(("table", "embedding_table")))],
    trains_differently=lambda a: a.dropout > 0,
    stochastic=lambda a: a.dropout > 0,
    invalid=[
        (dict(num_classes=0), "num_classes"),
        (dict(dim=0), "dim"),
        (dict(dropout=1.0), "dropout"),
        (dict(dropout=-0.1), "dropout"),
    ],
    without=ANY_NUMBER,
)


def test_classes_are_dropped_in_training_alone_and_as_often_as_asked():
    block, given = ClassEmbedding(3, 2, dropout=0.2), torch.arange(3).repeat(4000)
    rows = block.table.weight.detach()
    torch.manual_seed(0)
    found = block(given)
    kept, none = ((found == rows[classes]).all(1) for classes in (given, torch.full_like(given, 3)))
    assert (kept ^ none).all()
    assert none.double().mean().item() == pytest.approx(0.2, abs=0.02)
    assert torch.equal(block.eval()(given), rows[given])
    always = torch.full((5,), 3)
    assert torch.equal(block.train()(always), rows[always])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.tensor([0, 4]), "classes must be tokens from 0 to 3, got 4"),
        (torch.tensor([-1, 2]), "classes must be tokens from 0 to 3, got -1"),
        (torch.tensor([0.0, 1.0]), "classes must be of dtype"),
        (torch.tensor([[0, 1]]), "classes must have 1 axes"),
    ],
)
@pytest.mark.parametrize("train", [False, True])
def test_unknown_classes_are_refused(given, message, train):
    with pytest.raises(ValueError, match=message):
        ClassEmbedding(3, 2, dropout=0.99).train(train)(given)


# -------------------------------------------------------------------------------------------------------------------------- norms

NORM = dict(dim=st.sampled_from([4, 6]), condition_dim=st.integers(3, 5), eps=st.sampled_from([1e-6, 1e-2]))
INVALID = [(dict(dim=0), "dim"), (dict(condition_dim=0), "condition_dim"), (dict(eps=0.0), "eps")]


def conditioned(a):
    return dict(x=tensor("batch n dim", dim=a.dim), condition=tensor("batch condition_dim", condition_dim=a.condition_dim))


class TheirGated(nn.Module):
    def __init__(self, a):
        super().__init__()
        normalization = of_diffusers("normalization")
        self.body, self.norm = FeedForward(a.dim, 7), normalization.AdaLayerNormZeroSingle(a.dim)
        self.norm.linear = nn.Linear(a.condition_dim, 3 * a.dim)  # theirs has one size for both
        self.norm.norm.eps = a.eps

    def forward(self, x, condition):
        normed, gate = self.norm(x, emb=condition)
        return x + gate[:, None] * self.body(normed)


modulated = Contract(
    ModulatedNorm,
    defaults=dict(eps=(1e-6, "diffusers' AdaLayerNormZeroSingle")),
    arguments=NORM | dict(sublayer=lambda a: part(FeedForward, dim=a.dim, hidden_dim=7)),
    inputs=conditioned,
    outputs=lambda a, s: ("batch", "n", a.dim),
    twins=[Twin("diffusers", build=TheirGated, weights=WeightMap(("sublayer", "body"), ("modulation.linear", "norm.linear")))],
    holds=[initial_distribution(modulation__linear__weight=lambda a, p: (0, 0), modulation__linear__bias=lambda a, p: (0, 0))],
    invalid=INVALID,
)


def test_a_modulated_norm_starts_as_the_identity():
    x = torch.randn(2, 3, 4)
    assert torch.equal(ModulatedNorm(FeedForward(4, 7), 4, 5)(x, torch.randn(2, 5)), x)
    expected = F.layer_norm(x, (4,), eps=1e-6)
    assert torch.equal(Modulation(4, 5)(x, torch.randn(2, 5))[0], expected)


# ------------------------------------------------------------------------------------------------------------------------ patches


class TheirPatches(nn.Module):
    """Their embedding without its table, which is float32 and, of images that are not square, stretched."""

    def __init__(self, a):
        super().__init__()
        self.embed = of_diffusers("embeddings").PatchEmbed(
            patch_size=a.patch_size, in_channels=a.in_channels, embed_dim=a.dim, pos_embed_type=None
        )

    def forward(self, images):
        rows, columns = (n // self.embed.patch_size for n in images.shape[2:])
        found = self.embed(images)
        return found + grid_table(found.shape[-1], rows, columns).to(found.dtype)


patches = Contract(
    PatchEmbedding,
    arguments=dict(
        in_channels=st.integers(1, 3),
        dim=st.sampled_from([4, 8, 12]),
        patch_size=st.integers(2, 3),
        _rows=st.integers(1, 4),
        _columns=st.integers(1, 4),
    ),
    inputs=lambda a: dict(
        images=tensor(
            "batch channels height width",
            channels=a.in_channels,
            height=a._rows * a.patch_size,
            width=a._columns * a.patch_size,
        )
    ),
    outputs=lambda a, s: ("batch", a._rows * a._columns, a.dim),
    twins=[Twin("diffusers", build=TheirPatches, weights=WeightMap(("projection", "embed.proj")))],
    invalid=[
        (dict(in_channels=0), "in_channels"),
        (dict(dim=0), "dim"),
        (dict(dim=6), "dim"),
        (dict(patch_size=0), "patch_size"),
    ],
)


def test_the_table_of_a_square_is_that_of_diffusers_but_for_its_rounding():
    theirs = of_diffusers("embeddings").PatchEmbed(8, 8, 2, 1, 12).pos_embed
    ours = PatchEmbedding(1, 12, 2).double()
    nn.init.zeros_(ours.projection.bias)
    found = ours(torch.zeros(1, 1, 8, 8, dtype=torch.float64))
    assert torch.equal(found.float(), theirs)


class TheirOutput(nn.Module):
    """The end of their DiT, which stands in its `forward` for squares; here for any number of rows."""

    def __init__(self, a):
        super().__init__()
        self.a, self.proj_out_2 = a, nn.Linear(a.dim, a.patch_size**2 * a.out_channels)

    def forward(self, x, rows):
        p, c = self.a.patch_size, self.a.out_channels
        x = self.proj_out_2(x)
        x = x.reshape(shape=(len(x), rows, x.shape[1] // rows, p, p, c))
        x = torch.einsum("nhwpqc->nchpwq", x)
        return x.reshape(len(x), c, rows * p, -1)


unpatched = Contract(
    PatchOutput,
    arguments=dict(
        dim=st.integers(3, 6),
        out_channels=st.integers(1, 3),
        patch_size=st.integers(1, 3),
        _rows=st.integers(2, 3),
        _columns=st.integers(1, 4),
    ),
    inputs=lambda a: dict(tokens=tensor("batch tokens dim", tokens=a._rows * a._columns, dim=a.dim), rows=a._rows),
    outputs=lambda a, s: ("batch", a.out_channels, a._rows * a.patch_size, a._columns * a.patch_size),
    twins=[Twin("DiT", build=TheirOutput, weights=WeightMap(("projection", "proj_out_2")))],
    invalid=[(dict(dim=0), "dim"), (dict(out_channels=0), "out_channels"), (dict(patch_size=0), "patch_size")],
)
