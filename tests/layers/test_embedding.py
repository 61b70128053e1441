from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from layers.embedding import TokenEmbedding, require_known
from layers.testing import Contract, Twin, initial_distribution, permutation_equivariant, tokens
from layers.weights import WeightMap


class Scaled(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.table = nn.Embedding(a.vocab_size, a.dim, getattr(a, "padding", None))
        self.scale = a.scale

    def forward(self, tokens):
        return self.table(tokens) * self.scale


FRESH = initial_distribution(table__weight=lambda a, p: (0.0, getattr(a, "std", None) or a.dim**-0.5))


embedding = Contract(
    TokenEmbedding,
    arguments=dict(
        vocab_size=st.integers(20, 30),
        dim=st.integers(6, 9),
        scale=st.sampled_from([1.0, 2.5]),
        std=st.sampled_from([None, 0.5]),
    ),
    inputs=lambda a: dict(tokens=tokens("batch n", a.vocab_size)),
    outputs=lambda a, s: ("batch", "n", a.dim),
    twins=[Twin("torch", build=Scaled, weights=WeightMap(("", "")))],
    holds=[permutation_equivariant("tokens", "n", 1), FRESH],
    invalid=[(dict(vocab_size=0), "vocab_size"), (dict(dim=0), "dim"), (dict(vocab_size=20, padding=20), "padding")],
    without={"bad_input": "any number of axes will do"},
)

padded_embedding = Contract(
    TokenEmbedding,
    arguments=dict(vocab_size=st.integers(20, 30), dim=st.integers(6, 9), scale=2.5, padding=st.sampled_from([0, 3])),
    inputs=lambda a: dict(tokens=tokens("batch n", a.vocab_size)),
    outputs=lambda a, s: ("batch", "n", a.dim),
    twins=[Twin("torch", build=Scaled, weights=WeightMap(("", "")))],
    holds=[initial_distribution({"table.weight": "as without padding, but for its row; below"})],
    invalid=[(dict(padding=-1), "padding")],
    without={
        "bad_input": "any number of axes will do",
        **dict.fromkeys(
            ("gradcheck", "forward_derivatives"),
            "the row of the padding gets no gradient, as in nn.Embedding, though the output depends on it",
        ),
    },
    name="PaddedEmbedding",
)

fresh_embedding = Contract(
    TokenEmbedding,
    arguments=dict(vocab_size=st.integers(50, 60), dim=st.integers(6, 9), std=st.sampled_from([None, 0.5])),
    inputs=lambda a: dict(tokens=tokens("batch n", a.vocab_size)),
    outputs=lambda a, s: ("batch", "n", a.dim),
    holds=[FRESH],
    invalid=[(dict(dim=0), "dim")],
    without={"bad_input": "any number of axes will do"},
    name="FreshEmbedding",
)


def test_the_padding_row_starts_as_zeros_and_stays():
    embedding = TokenEmbedding(10, 4, padding=3)
    assert not embedding.table.weight[3].any()
    assert embedding.table.weight[2].all()
    embedding(torch.tensor([3, 2])).sum().backward()
    assert not embedding.table.weight.grad[3].any()
    assert embedding.table.weight.grad[2].all()


def test_logits_use_the_same_table_without_its_scale():
    embedding = TokenEmbedding(10, 4, scale=3.0)
    x = torch.randn(2, 5, 4)
    torch.testing.assert_close(embedding.logits(x), x @ embedding.table.weight.T)
    assert [name for name, _ in embedding.named_parameters()] == ["table.weight"]


@pytest.mark.parametrize("tokens", [torch.tensor(4), torch.zeros(2, 3, 5, dtype=torch.long)])
def test_any_number_of_axes(tokens):
    assert TokenEmbedding(10, 4)(tokens).shape == (*tokens.shape, 4)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_tokens_outside_of_the_vocabulary_are_refused(dtype):
    embedding = TokenEmbedding(10, 4)
    assert torch.equal(embedding(torch.tensor([9, 0], dtype=dtype)), embedding.table.weight[[9, 0]])
    for token in (10, -1):
        with pytest.raises(ValueError, match=f"tokens must be tokens from 0 to 9, got {token}"):
            embedding(torch.tensor([[3, token]], dtype=dtype))


def test_the_first_and_the_last_token_are_known():
    require_known(torch.tensor([9, 0]), "tokens", 10)
    require_known(torch.zeros(2, 0, dtype=torch.long), "tokens", 10)
    for known, got in (([0, 10], 10), ([-1, 9], -1), ([-1, 10], -1)):
        with pytest.raises(ValueError, match=f"words must be tokens from 0 to 9, got {got}"):
            require_known(torch.tensor(known), "words", 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
def test_tokens_of_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match=r"tokens must be of dtype torch.int64 or torch.int32, got torch\."):
        TokenEmbedding(10, 4)(torch.ones(3, dtype=dtype))
