"""Numbers that a paper or a reference fixes, and that nobody passes: each default against its source."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn
from transformers import ApertusConfig, GPT2Config, LlamaConfig, T5Config
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.t5.modeling_t5 import T5Attention

import zoo
from layers.attention import MultiHeadAttention
from layers.embedding import TokenEmbedding
from layers.feedforward import GEGLU, FeedForward, SwiGLU
from layers.positions import ALiBi, LearnedPositions, RelativeBias, Rotary, Sinusoidal
from layers.rotary_scaling import Llama3Scaling


def default(block, name):
    return inspect.signature(block).parameters[name].default


T5_BUCKETS = T5Attention._relative_position_bucket
LLAMA_3 = ApertusConfig().rope_parameters
"""A model of transformers that has the scaling of Llama 3.1 by default."""


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (default(RelativeBias, "buckets"), T5Config().relative_attention_num_buckets),
        (default(RelativeBias, "max_distance"), T5Config().relative_attention_max_distance),
        (default(RelativeBias, "bidirectional"), default(T5_BUCKETS, "bidirectional")),
        (default(Rotary, "base"), LlamaConfig().rope_parameters["rope_theta"]),
        (default(Llama3Scaling, "factor"), LLAMA_3["factor"]),
        (default(Llama3Scaling, "low"), LLAMA_3["low_freq_factor"]),
        (default(Llama3Scaling, "high"), LLAMA_3["high_freq_factor"]),
        (default(Llama3Scaling, "original_length"), LLAMA_3["original_max_position_embeddings"]),
        (default(GEGLU, "approximate"), default(nn.GELU, "approximate")),
        (MultiHeadAttention(6, 2).head_dim, nn.MultiheadAttention(6, 2).head_dim),
        (default(MultiHeadAttention, "dropout"), default(nn.MultiheadAttention, "dropout")),
    ],
)
def test_defaults_are_those_of_the_reference(ours, reference):
    assert ours == reference


def test_rotary_pairs_features_as_transformers_llama():
    """The halves, not neighbours."""
    x, positions = torch.randn(1, 1, 5, 8), torch.arange(5)
    cos, sin = LlamaRotaryEmbedding(LlamaConfig(hidden_size=8, num_attention_heads=1))(x, positions[None])
    torch.testing.assert_close(Rotary(8)(x, positions), apply_rotary_pos_emb(x, x, cos, sin)[0])


def test_feed_forward_networks_are_activated_as_the_papers_say():
    assert isinstance(FeedForward(2, 3).activation, nn.ReLU)  # arXiv 1706.03762, 3.3
    assert isinstance(SwiGLU(2, 3).activation, nn.SiLU)  # arXiv 2002.05202
    assert isinstance(GEGLU(2, 3).activation, nn.GELU)
    assert FeedForward(2, 3).up.bias is not None
    assert SwiGLU(2, 3).up.bias is GEGLU(2, 3).up.bias is None  # as there, and in Llama and T5 v1.1


@pytest.mark.parametrize("dim", [4, 6])
def test_sines_turn_at_the_papers_speeds(dim):
    """The first and the slowest: 1 and 10000^(-(dim - 2) / dim) radians per position."""
    found = Sinusoidal(dim)(torch.tensor([1]), torch.float64)[0].asin()
    torch.testing.assert_close(found[[0, dim - 2]], torch.tensor([1.0, 10000.0 ** ((2 - dim) / dim)], dtype=torch.float64))


def test_alibi_starts_at_the_papers_slope():
    """2^(-8 / heads), and Bloom's."""
    slope = float(-ALiBi(8)(torch.tensor([1]), torch.tensor([0]))[0, 0, 0])
    assert slope == 0.5
    assert slope == float(build_alibi_tensor(torch.ones(1, 2), 8, torch.float32)[0, 0, 1])


@pytest.mark.parametrize(
    ("table", "reference"),
    [
        (lambda: LearnedPositions(500, 64).table.weight, GPT2Config().initializer_range),
        (lambda: RelativeBias(64, 500, 1000).table.weight, 0.02),
        (lambda: TokenEmbedding(500, 64).table.weight, 64**-0.5),  # tensor2tensor, layers/modality.py
    ],
)
def test_tables_start_with_the_references_deviation(table, reference):
    torch.manual_seed(0)
    assert table().std().item() == pytest.approx(reference, rel=0.03)


@pytest.mark.parametrize("name", ["transformer_base", "transformer_big", "transformer_small"])
def test_norms_of_the_transformers_have_torchs_eps(name):
    """1e-5, which `nn.Transformer` and Marian have."""
    with torch.device("meta"):
        model = zoo.create(name, vocab_size=5)
    assert (
        {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-5} == {nn.TransformerEncoderLayer(2, 1).norm1.eps}
    )


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("transformer_base", dict(dim=512, heads=8, hidden_dim=2048, layers=6, dropout=0.1)),
        ("transformer_big", dict(dim=1024, heads=16, hidden_dim=4096, layers=6, dropout=0.3)),
    ],
)
def test_the_papers_models_have_the_papers_numbers(name, numbers):
    """arXiv 1706.03762, table 3; embeddings times sqrt(dim), 3.4."""
    with torch.device("meta"):
        model = zoo.create(name, vocab_size=5)
    attention = model.decoder[0].cross_attention.sublayer
    found = dict(
        dim=attention.dim,
        heads=attention.heads,
        hidden_dim=model.encoder[0].feedforward.sublayer.up.out_features,
        layers=len(model.encoder),
        dropout=model.dropout.p,
    )
    assert found == numbers
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout) and m.p} == {numbers["dropout"]}
    assert len(model.decoder) == len(model.encoder)
    assert model.embedding.scale == numbers["dim"] ** 0.5
