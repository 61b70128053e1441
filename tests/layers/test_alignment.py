from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from layers.alignment import AdditiveAttention, MultiplicativeAttention
from layers.testing import Contract, Twin, padding_invariant, permutation_equivariant, tensor
from layers.weights import WeightMap


class Additive(nn.Module):
    """The formula, score by score: arXiv 1409.0473, appendix A.1.2."""

    def __init__(self, a):
        super().__init__()
        self.w_a = nn.Parameter(torch.empty(a.hidden_dim, a.query_dim))
        self.u_a = nn.Parameter(torch.empty(a.hidden_dim, a.memory_dim))
        self.v_a = nn.Parameter(torch.empty(a.hidden_dim))

    def forward(self, query, memory):
        contexts, weights = [], []
        for b in range(len(query)):
            for q in query[b]:
                scores = torch.stack([self.v_a @ torch.tanh(self.w_a @ q + self.u_a @ h) for h in memory[b]])
                weights.append(scores.exp() / scores.exp().sum())
                contexts.append(sum((w * h for w, h in zip(weights[-1], memory[b], strict=True)), torch.zeros_like(memory[b, 0])))
        return tuple(torch.stack(x).unflatten(0, query.shape[:2]) for x in (contexts, weights))


class Multiplicative(nn.Module):
    """Torch's scaled dot-product attention with a scale of 1; its weights are what it makes of an identity in place of values."""

    def __init__(self, a):
        super().__init__()
        self.w_a = nn.Linear(a.memory_dim, a.query_dim, bias=False) if a.general else None

    def forward(self, query, memory):
        key = memory if self.w_a is None else self.w_a(memory)
        every = torch.eye(memory.shape[1], dtype=memory.dtype).expand(len(memory), -1, -1)
        return tuple(F.scaled_dot_product_attention(query, key, value, scale=1.0) for value in (memory, every))


def call(block, inputs):
    """A mask as `padding_invariant` has it: (b, 1, 1, n)."""
    mask = inputs["mask"].flatten(1) if "mask" in inputs else None
    return block(inputs["query"], inputs["memory"], mask)


common = dict(
    inputs=lambda a: dict(
        query=tensor("batch queries query_dim", query_dim=a.query_dim),
        memory=tensor("batch keys memory_dim", keys=st.integers(2, 6), memory_dim=a.memory_dim),
    ),
    outputs=lambda a, s: [("batch", "queries", a.memory_dim), ("batch", "queries", "keys")],
    call=call,
    holds=[padding_invariant("memory", "keys", 2), permutation_equivariant("query", "queries", 1)],
)

additive = Contract(
    AdditiveAttention,
    arguments=dict(query_dim=st.integers(2, 4), memory_dim=st.integers(11, 13), hidden_dim=st.integers(5, 7)),
    twins=[
        Twin(
            "formula",
            build=Additive,
            weights=WeightMap(
                ("query.weight", "w_a", "o i -> o i"), ("key.weight", "u_a", "o i -> o i"), ("score.weight", "v_a", "1 i -> i")
            ),
        )
    ],
    invalid=[(dict(query_dim=0), "query_dim"), (dict(memory_dim=0), "memory_dim"), (dict(hidden_dim=0), "hidden_dim")],
    **common,
)

multiplicative = Contract(
    MultiplicativeAttention,
    arguments=dict(
        general=st.sampled_from([True, False]),
        query_dim=st.integers(11, 13),
        memory_dim=lambda a: st.integers(14, 16) if a.general else a.query_dim,
    ),
    twins=[Twin("torch", build=Multiplicative, weights=WeightMap(("key", "w_a")))],
    invalid=[(dict(query_dim=0, general=True), "query_dim"), (dict(memory_dim=4, general=False), "memory_dim")],
    **common,
)


BLOCKS = pytest.mark.parametrize(
    "block", [AdditiveAttention(3, 4, 5), MultiplicativeAttention(3, 4)], ids=["additive", "general"]
)


@BLOCKS
def test_what_is_remembered_gives_the_same(block):
    query, memory = torch.randn(2, 6, 3), torch.randn(2, 5, 4)
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    kept = block.remember(memory, mask)
    for n in range(6):
        torch.testing.assert_close(block(query[:, n : n + 1], kept), tuple(x[:, n : n + 1] for x in block(query, memory, mask)))
    assert not torch.allclose(block(query, memory)[0], block(query, memory, mask)[0])


@BLOCKS
def test_nothing_to_attend_to_gives_zeros_and_finite_gradients(block):
    query, memory = torch.randn(2, 3, 3, requires_grad=True), torch.randn(2, 5, 4).requires_grad_()
    mask = torch.arange(5) < torch.tensor([[0], [2]])
    context, weights = block(query, memory, mask)
    assert not context[0].any()
    assert not weights[0].any()
    assert context[1].all()
    with torch.autograd.set_detect_anomaly(True):  # NaN on the way is an error, even where it vanishes later
        context, _ = block(query, memory, mask)
        gradients = torch.autograd.grad((context * torch.randn(2, 3, 4)).sum(), [query, memory])
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[1][~mask].any()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (dict(mask=torch.ones(2, 4) > 0), "mask: keys must be 5, got 4"),
        (dict(mask=torch.ones(3, 5) > 0), "mask: batch must be 2, got 3"),
        (dict(mask=torch.ones(2, 5)), "mask must be boolean"),
    ],
)
@BLOCKS
def test_masks_that_do_not_fit_are_named(block, changed, words):
    with pytest.raises(ValueError, match=words):
        block(**dict(query=torch.randn(2, 6, 3), memory=torch.randn(2, 5, 4)) | changed)
