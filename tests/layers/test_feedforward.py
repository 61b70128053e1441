from __future__ import annotations

from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, LlamaConfig, T5Config
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense

from layers.feedforward import GEGLU, FeedForward, SwiGLU
from layers.testing import Contract, Twin, exercised, part, permutation_equivariant, tensor
from layers.weights import WeightMap

sizes = dict(dim=st.integers(2, 4), hidden_dim=st.integers(5, 8))
INVALID = [(dict(hidden_dim=0), "hidden_dim"), (dict(dropout=1.0), "dropout"), (dict(dropout=-0.1), "dropout must")]
shapes = dict(
    inputs=lambda a: dict(x=tensor("batch n dim", dim=a.dim)),
    outputs=lambda a, s: ("batch", "n", a.dim),
    holds=[permutation_equivariant("x", "n", 1)],
    invalid=INVALID,
)


def in_sequence(a):
    activation = a.activation.factory(**a.activation.arguments)
    up, down = nn.Linear(a.dim, a.hidden_dim, a.bias), nn.Linear(a.hidden_dim, a.dim, a.bias)
    return nn.Sequential(up, activation, nn.Dropout(a.dropout), down)


def gpt2(a):
    return GPT2MLP(a.hidden_dim, GPT2Config(n_embd=a.dim, resid_pdrop=0.0))


def t5(a):
    config = T5Config(d_model=a.dim, d_ff=a.hidden_dim, dropout_rate=a.dropout, feed_forward_proj="gated-gelu")
    config.dense_act_fn = "gelu_new" if a.approximate == "tanh" else "gelu"
    return T5DenseGatedActDense(config)


feedforward = Contract(
    FeedForward,
    arguments=sizes
    | dict(
        activation=st.sampled_from([part(nn.ReLU), part(nn.GELU), part(nn.GELU, approximate="tanh"), part(nn.SiLU)]),
        bias=st.booleans(),
        dropout=st.sampled_from([0.0, 0.4]),
    ),
    twins=[Twin("torch", build=in_sequence, weights=WeightMap(("up", "0"), ("down", "3")))],
    trains_differently=lambda a: a.dropout > 0,
    stochastic=lambda a: a.dropout > 0,
    **shapes,
)

gpt2_feedforward = Contract(
    FeedForward,
    arguments=sizes | dict(activation=part(nn.GELU, approximate="tanh")),
    twins=[
        Twin(
            "gpt2",
            build=gpt2,
            weights=WeightMap(
                ("up.weight", "c_fc.weight", "o i -> i o"),
                ("up.bias", "c_fc.bias"),
                ("down.weight", "c_proj.weight", "o i -> i o"),
                ("down.bias", "c_proj.bias"),
            ),
        )
    ],
    name="GPT2FeedForward",
    **shapes,
)


class DroppingLlama(LlamaMLP):
    """With T5's dropout, between the product and the layer that goes down."""

    def __init__(self, a):
        super().__init__(LlamaConfig(hidden_size=a.dim, intermediate_size=a.hidden_dim, num_attention_heads=1,
                                     num_key_value_heads=1, mlp_bias=a.bias))  # fmt: skip
        self.dropout = a.dropout

    def forward(self, x):
        product = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(F.dropout(product, self.dropout, self.training))


swiglu = Contract(
    SwiGLU,
    arguments=sizes | dict(bias=st.booleans(), dropout=st.sampled_from([0.0, 0.4])),
    trains_differently=lambda a: a.dropout > 0,
    stochastic=lambda a: a.dropout > 0,
    twins=[
        Twin(
            "llama",
            build=DroppingLlama,
            weights=WeightMap(("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")),
        )
    ],
    **shapes,
)  # fmt: skip

geglu = Contract(
    GEGLU,
    **shapes | dict(holds=[*shapes["holds"], exercised(bias="T5 has none: in the contract of SwiGLU")]),
    arguments=sizes | dict(approximate=st.sampled_from(["tanh", "none"]), dropout=st.sampled_from([0.0, 0.4])),
    trains_differently=lambda a: a.dropout > 0,
    stochastic=lambda a: a.dropout > 0,
    twins=[
        Twin(
            "t5",
            build=t5,
            weights=WeightMap(("gate", "wi_0"), ("up", "wi_1"), ("down", "wo")),
        )
    ],
)
