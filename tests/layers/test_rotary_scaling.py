from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from layers.positions import Rotary, frequencies
from layers.rotary_scaling import (
    SCALINGS,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Scaling,
    YarnScaling,
)

factors = st.sampled_from([1.0, 1.5, 4.0, 32.0])
lengths = st.sampled_from([8, 64, 500, 4096])


def theirs(kind, dim, base, **options):
    """Their configuration. Their dynamic type takes the original length from the model's."""
    original = options.get("original_max_position_embeddings", 64)
    rope = dict(rope_type=kind, rope_theta=base, **options)
    return LlamaConfig(hidden_size=dim, num_attention_heads=1, rope_parameters=rope, max_position_embeddings=original)


@st.composite
def cases(draw):
    """Our scaling and their configuration: kind, numbers, features, base, and the length of a text."""
    kind, dim, base = (
        draw(st.sampled_from(list(SCALINGS))),
        2 * draw(st.integers(2, 32)),
        draw(st.sampled_from([100.0, 1e4, 5e5])),
    )
    factor, original = draw(factors), draw(lengths)
    options = dict(original_max_position_embeddings=original)
    if kind == "linear":
        return kind, LinearScaling(factor), theirs(kind, dim, base, factor=factor), 1
    options |= dict(factor=factor)
    if kind == "dynamic":
        return kind, DynamicScaling(factor, original), theirs(kind, dim, base, **options), draw(st.integers(1, 3 * original))
    if kind == "llama3":
        low, high = draw(st.sampled_from([(1.0, 4.0), (2.0, 5.5)]))
        ours = Llama3Scaling(factor, low, high, original)
        return kind, ours, theirs(kind, dim, base, low_freq_factor=low, high_freq_factor=high, **options), 1
    attention = draw(st.sampled_from([None, 1.25]))
    options |= {} if attention is None else dict(attention_factor=attention)
    if kind == "yarn":
        fast, slow, truncate = draw(st.sampled_from([32.0, 16.0])), draw(st.sampled_from([1.0, 2.0])), draw(st.booleans())
        ours = YarnScaling(factor, original, attention, fast, slow, truncate)
        return kind, ours, theirs(kind, dim, base, beta_fast=fast, beta_slow=slow, truncate=truncate, **options), 1
    short, long = ([draw(st.sampled_from([1.0, 1.1, 2.0, 7.5])) for _ in range(dim // 2)] for _ in range(2))
    ours = LongRopeScaling(tuple(short), tuple(long), original, factor, attention)
    config = theirs(kind, dim, base, short_factor=short, long_factor=long, **options)
    return kind, ours, config, draw(st.integers(1, 3 * original))


@settings(max_examples=150, deadline=None)
@given(cases())
def test_frequencies_and_factor_equal_theirs(case):
    """Their frequencies are float32: they are held to its rounding, base and powers included."""
    kind, ours, config, length = case
    expected, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length)
    base = config.rope_parameters["rope_theta"]
    found = ours(frequencies(config.hidden_size, base, torch.device("cpu")), base, length)
    torch.testing.assert_close(found, expected.double(), rtol=64 * 2**-24, atol=0)
    assert ours.attention_factor == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("length", [1, 8, 9, 30])
@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_the_length_is_that_of_the_text_unless_given(kind, length):
    scaling = DynamicScaling(3.0, 8) if kind == "dynamic" else LongRopeScaling((1.0, 1.5), (4.0, 9.0), 8, 2.0)
    rotary, positions = Rotary(4, scaling=scaling), torch.arange(length)
    found = rotary.angles(positions, torch.float64)
    expected = rotary.angles(positions, torch.float64, length)
    torch.testing.assert_close(found, expected)
    extra = dict(short_factor=[1.0, 1.5], long_factor=[4.0, 9.0]) if kind == "longrope" else {}
    config = theirs(kind, 4, 10000.0, factor=scaling.factor, original_max_position_embeddings=8, **extra)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    torch.testing.assert_close((found.cos.float(), found.sin.float()), (cos[0, :, :2], sin[0, :, :2]), rtol=1e-5, atol=1e-5)
    longer = rotary.angles(positions, torch.float64, 31)
    unchanged = length == 1 or (kind == "longrope" and length > 8)
    assert torch.equal(longer.cos, found.cos) == unchanged


def test_of_no_positions_there_are_no_angles():
    rotary = Rotary(4, scaling=DynamicScaling(3.0, 8))
    assert rotary.angles(torch.zeros(0, dtype=torch.long), torch.float32).cos.shape == (0, 2)
    assert rotary(torch.zeros(2, 3, 0, 4), torch.zeros(2, 0, dtype=torch.long)).shape == (2, 3, 0, 4)


def test_the_attention_factor_multiplies_scores_by_its_square():
    x, at = torch.randn(1, 2, 3, 8, dtype=torch.float64), torch.arange(3)
    plain, scaled = (Rotary(8, scaling=YarnScaling(4.0, 4096, attention))(x, at) for attention in (1.0, 1.5))
    torch.testing.assert_close(scaled @ scaled.mT, 2.25 * plain @ plain.mT)
    assert YarnScaling(4.0, 64).attention_factor == 0.1 * math.log(4) + 1


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: LinearScaling(0.5), "factor"),
        (lambda: DynamicScaling(2.0, 0), "original_length"),
        (lambda: YarnScaling(0.5, 8), "factor"),
        (lambda: YarnScaling(2.0, 0), "original_length"),
        (lambda: YarnScaling(2.0, 8, fast=1.0), "slow"),
        (lambda: YarnScaling(2.0, 8, slow=0.0), "slow"),
        (lambda: LongRopeScaling((1.0,), (1.0, 2.0), 8, 2.0), "long"),
        (lambda: LongRopeScaling((0.0,), (1.0,), 8, 2.0), "short and long"),
        (lambda: LongRopeScaling((1.0,), (1.0,), 1, 2.0), "original_length"),
        (lambda: LongRopeScaling((1.0,), (1.0,), 8, 0.5), "factor"),
        (lambda: Rotary(8, scaling=LongRopeScaling((1.0,), (1.0,), 8, 2.0)).angles(torch.arange(2), torch.float32), "short"),
    ],
)
def test_bad_numbers_are_refused(make, name):
    with pytest.raises(ValueError, match=name):
        make()


def test_a_scaling_is_one_of_its_kinds():
    with pytest.raises(TypeError, match="Llama3Scaling"):
        Scaling()(torch.ones(2), 10.0, 1)
