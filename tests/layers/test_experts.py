from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from layers.experts import MixtureOfExperts
from layers.testing import Contract, Twin, initial_distribution, part, permutation_equivariant, tensor
from layers.weights import WeightMap

MIXTRAL = WeightMap(
    ("router", "gate"), ("gate up", "experts.gate_up_proj", "gu e o i -> e (gu o) i"), ("down", "experts.down_proj")
)


class Loop(nn.Module):
    """The sentence written down: each token through its experts, one by one."""

    def __init__(self, a):
        super().__init__()
        self.block = MixtureOfExperts(a.dim, a.hidden_dim, a.experts, a.active)
        self.activation = F.silu if a.activation is None else F.gelu

    def forward(self, x):
        own = self.block
        rows = []
        for token in x.reshape(-1, x.shape[-1]):
            shares, chosen = own.router(token).softmax(-1).sort(descending=True)
            total = sum(shares[: own.active])
            rows.append(
                sum(
                    share / total * (own.down[e] @ (self.activation(own.gate[e] @ token) * (own.up[e] @ token)))
                    for share, e in zip(shares[: own.active], chosen[: own.active], strict=True)
                )
            )
        return torch.stack(rows).reshape(x.shape) if rows else x * own.down.sum()


def mixtral(a):
    config = MixtralConfig(
        hidden_size=a.dim, intermediate_size=a.hidden_dim, num_local_experts=a.experts, num_experts_per_tok=a.active,
        num_attention_heads=1, num_key_value_heads=1, experts_implementation="eager",
        hidden_act="silu" if a.activation is None else "gelu",
    )  # fmt: skip
    return MixtralSparseMoeBlock(config)


def as_linear(a, weight):
    """Uniform up to 1 / sqrt(features that come in)."""
    return 0.0, (3 * weight.shape[-1]) ** -0.5


experts = Contract(
    MixtureOfExperts,
    arguments=dict(
        dim=st.integers(2, 4), hidden_dim=st.integers(5, 8), experts=st.integers(2, 4),
        active=lambda a: st.integers(1, a.experts), activation=st.sampled_from([None, part(nn.GELU)]),
    ),
    inputs=lambda a: dict(x=tensor("batch n dim", dim=a.dim)),
    outputs=lambda a, s: ("batch", "n", a.dim),
    holds=[permutation_equivariant("x", "n", 1), initial_distribution(dict.fromkeys(("gate", "up", "down"), as_linear))],
    twins=[
        Twin("written down", build=Loop, weights=WeightMap(("", "block"))),
        Twin(
            "mixtral",
            build=mixtral,
            weights=MIXTRAL,
            single_precision="transformers 5.23 mixtral/modeling_mixtral.py:107, the router's probabilities in float32",
        ),
    ],
    without={"batch_rows": "an expert's product rounds by how many tokens it has; below, rows see nothing of each other"},
    invalid=[
        (dict(dim=0), "dim"), (dict(hidden_dim=0), "hidden_dim"), (dict(experts=0), "experts"), (dict(active=0), "active"),
        (dict(active=5), "active"),
    ],
)  # fmt: skip


@pytest.mark.parametrize("tokens", [0, 1, 9])
def test_both_ways_to_compute_are_equal(tokens):
    """Each expert its own tokens, and all experts all tokens; experts that nobody chose too."""
    torch.manual_seed(0)
    block = MixtureOfExperts(3, 5, 6, 2).double()
    x = torch.randn(tokens, 3, dtype=torch.float64)
    torch.testing.assert_close(block(x), block.all_experts(x, *block.route(x)))


def test_a_row_sees_no_other():
    """To rounding: the other rows decide how many tokens an expert has, and so how its products round."""
    torch.manual_seed(0)
    block, x = MixtureOfExperts(4, 6, 3, 2).double(), torch.randn(5, 7, 4, dtype=torch.float64)
    whole = block(x)
    for row in range(5):
        torch.testing.assert_close(block(x[row]), whole[row], rtol=1e-13, atol=1e-14)
        other = torch.randn_like(x)
        other[row] = x[row]
        torch.testing.assert_close(block(other)[row], whole[row], rtol=1e-13, atol=1e-14)
