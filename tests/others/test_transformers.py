"""Blocks of transformers."""

from __future__ import annotations

import inspect

from findings import Finding
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BloomConfig,
    BloomModel,
    CodeGenConfig,
    CodeGenModel,
    FalconConfig,
    FalconModel,
    GPT2Config,
    GPT2Model,
    GPTJConfig,
    GPTJModel,
    GPTNeoConfig,
    GPTNeoModel,
    GPTNeoXConfig,
    GPTNeoXModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    MptConfig,
    MptModel,
    OPTConfig,
    OPTModel,
    logging,
)  # fmt: skip
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from layers.testing import Contract, causal, padding_invariant, permutation_equivariant, tensor, tokens

logging.set_verbosity_error()
LIBRARY = "transformers"
FLOAT32 = "norms, rotary tables or softmax in float32 whatever the dtype"
TOO_LONG = dict(trace="half a minute; not what is looked for here")
FUNCTORCH = dict.fromkeys(
    ("forward_derivatives", "per_sample_gradients"),
    "BLOOM's GELU is an autograd.Function of the old form, which torch.func refuses, and says so",
)

SMALL = dict(vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2)
MODELS = dict(
    bloom=lambda: BloomModel(BloomConfig(vocab_size=11, hidden_size=8, n_layer=2, n_head=2)),
    codegen=lambda: CodeGenModel(CodeGenConfig(vocab_size=11, n_positions=16, n_embd=16, n_layer=2, n_head=4, rotary_dim=2)),
    falcon=lambda: FalconModel(FalconConfig(**SMALL, max_position_embeddings=16)),
    gpt2=lambda: GPT2Model(GPT2Config(vocab_size=11, n_positions=16, n_embd=8, n_layer=2, n_head=2)),
    gptj=lambda: GPTJModel(GPTJConfig(vocab_size=11, n_positions=16, n_embd=8, n_layer=2, n_head=2, rotary_dim=2)),
    gptneo=lambda: GPTNeoModel(
        GPTNeoConfig(
            vocab_size=11,
            max_position_embeddings=16,
            hidden_size=8,
            num_layers=2,
            num_heads=2,
            attention_types=[[["global", "local"], 1]],
            window_size=3,
        )
    ),
    gptneox=lambda: GPTNeoXModel(GPTNeoXConfig(**SMALL, max_position_embeddings=16)),
    llama=lambda: LlamaModel(LlamaConfig(**SMALL, max_position_embeddings=16)),
    mistral=lambda: MistralModel(MistralConfig(**SMALL, num_key_value_heads=1, max_position_embeddings=16, sliding_window=3)),
    mpt=lambda: MptModel(MptConfig(vocab_size=11, d_model=8, n_heads=2, n_layers=2, max_seq_len=16)),
    opt=lambda: OPTModel(
        OPTConfig(
            vocab_size=11,
            hidden_size=8,
            word_embed_proj_dim=8,
            ffn_dim=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
        )
    ),
)


def decoder(option, implementation):
    module = MODELS[option]()
    module.config.use_cache = False
    module.set_attn_implementation(implementation)
    return module


def hidden(module, inputs):
    """Hidden states of ids, with positions that begin at the first one that counts."""
    mask = inputs.get("mask")
    if mask is None:
        return module(input_ids=inputs["input_ids"], use_cache=False).last_hidden_state
    mask = mask[:, 0, 0].long()
    given = dict(input_ids=inputs["input_ids"], attention_mask=mask, use_cache=False)
    if "position_ids" in inspect.signature(module.forward).parameters:
        given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return module(**given).last_hidden_state


decoders = Contract(
    decoder,
    arguments=dict(option=st.sampled_from(list(MODELS)), implementation=st.sampled_from(["eager", "sdpa"])),
    inputs=lambda a: dict(input_ids=tokens("b n", 11, n=st.integers(3, 5))),
    outputs=lambda a, s: ...,
    call=hidden,
    holds=[causal("input_ids", "n", 1), padding_invariant("input_ids", "n", 1)],
    trains_differently=lambda a: True,
    stochastic=lambda a: True,
    foreign=True,
    model=True,
    single_precision=FLOAT32,
    without=TOO_LONG | FUNCTORCH,
    name="decoders",
)

FEATURES = dict(
    inputs=lambda a: dict(x=tensor("b n d", d=a.dim)),
    outputs=lambda a, s: ("b", "n", a.dim),
    call=lambda module, inputs: module(inputs["x"]),
    foreign=True,
)


def llama_mlp(dim, hidden, bias):
    return LlamaMLP(
        LlamaConfig(hidden_size=dim, intermediate_size=hidden, num_attention_heads=1, num_key_value_heads=1, mlp_bias=bias)
    )


mlp = Contract(
    llama_mlp, arguments=dict(dim=st.integers(2, 4), hidden=st.integers(5, 6), bias=st.booleans()), name="LlamaMLP", **FEATURES
)


def gpt2_mlp(dim, hidden):
    return GPT2MLP(hidden, GPT2Config(n_embd=dim, n_head=1, resid_pdrop=0.0))


gpt2 = Contract(gpt2_mlp, arguments=dict(dim=st.integers(2, 4), hidden=st.integers(5, 6)), name="GPT2MLP", **FEATURES)


def llama_norm(dim, eps):
    return LlamaRMSNorm(dim, eps)


rms_norm = Contract(
    llama_norm,
    arguments=dict(dim=st.integers(3, 5), eps=st.sampled_from([1e-6, 1e-3])),
    single_precision="LlamaRMSNorm.forward computes in float32",
    name="LlamaRMSNorm",
    **FEATURES,
)


def bert(dim, heads, implementation):
    config = BertConfig(
        hidden_size=dim, num_attention_heads=heads, intermediate_size=6, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    config._attn_implementation = implementation
    return BertLayer(config)


bert_layer = Contract(
    bert,
    arguments=dict(dim=8, heads=st.sampled_from([1, 2]), implementation="eager"),
    inputs=lambda a: dict(x=tensor("b n d", d=a.dim, n=st.integers(3, 5))),
    outputs=lambda a, s: ("b", "n", a.dim),
    call=lambda module, inputs: module(inputs["x"]),
    holds=[permutation_equivariant("x", "n", 1)],
    foreign=True,
    name="BertLayer",
)

EAGER = ("gptneox", "llama", "mistral", "opt")
ALWAYS = ("bloom", "mpt")


def padded(name, **config):
    lines = "".join(f"    {key}={value!r},\n" for key, value in config.items()).replace("'", '"')
    return f"""
import torch
from transformers import {name}Config, {name}Model

config = {name}Config(
{lines})
model = {name}Model(config).double().eval()
ids, mask = torch.tensor([[1, 2, 3]]), torch.tensor([[0, 1, 1]])
assert model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()].isnan().all()
assert model.float()(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()].isfinite().all()
"""


WHAT = (
    "Left padding makes the real positions NaN too: the least float64, with which scores are masked, is minus infinity in the "
    "softmax's float32, and the padding's rows, which see nothing, become NaN."
)
FOUND = [
    Finding(
        "decoders",
        "padding_invariant",
        "float64: BLOOM, MPT",
        WHAT,
        padded("Bloom", vocab_size=11, hidden_size=8, n_layer=2, n_head=2),
        where=lambda case: case.arguments.option in ALWAYS,
        seen=("huggingface/transformers#27114",),
        cf=True,
    ),
    Finding(
        "decoders",
        "padding_invariant",
        'float64 and `attn_implementation="eager"`: GPT-NeoX, Llama, Mistral, OPT',
        WHAT,
        padded(
            "Llama",
            vocab_size=11,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            attn_implementation="eager",
        ),
        where=lambda case: case.arguments.option in EAGER and case.arguments.implementation == "eager",
        seen=("huggingface/transformers#27114",),
        cf=True,
    ),
    Finding(
        "BertLayer",
        "empty_batch",
        "all",
        "A batch of no rows is an error.",
        """
import torch
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

config = BertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=6)
config._attn_implementation = "eager"
try:
    BertLayer(config)(torch.randn(0, 3, 8))
    raise AssertionError("works")
except RuntimeError as error:
    assert "cannot reshape tensor of 0 elements" in str(error)
""",
        raises=RuntimeError,
    ),
]
