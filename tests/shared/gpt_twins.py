"""Models of transformers that compute in float64 what they compute in float32, as twins of our language models."""

from __future__ import annotations

from functools import partial

import torch
import transformers
from torch.nn import functional as F

NO_TOKENS = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)


def rms_norm(module, offset, x):
    eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * (offset + module.weight)


def rotary(module, x, position_ids, layer_type=None):
    rope = module.config.rope_parameters
    base = (rope if layer_type is None else rope[layer_type])["rope_theta"]
    width = getattr(module.config, "head_dim", None) or module.config.hidden_size // module.config.num_attention_heads
    angles = position_ids[..., None] * base ** -(torch.arange(0, width, 2, device=x.device).double() / width)
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def route(module, x):
    logits = F.linear(x.reshape(-1, module.hidden_dim), module.weight)
    top, chosen = logits.softmax(-1).topk(module.top_k, -1)
    return logits, top / top.sum(-1, keepdim=True), chosen


def scaled_embedding(module, tokens):
    return F.embedding(tokens, module.weight) * module.scalar_embed_scale


def precise(model):
    """Their model, whose norms, angles, routers and scales follow its dtype."""
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            module.forward = partial(rms_norm, module, 1.0 if kind.startswith("Gemma") else 0.0)
        elif kind.endswith("RotaryEmbedding"):
            module.forward = partial(rotary, module)
        elif kind.endswith("TopKRouter"):
            module.forward = partial(route, module)
        elif kind.endswith("ScaledWordEmbedding"):
            module.forward = partial(scaled_embedding, module)
    return model.eval()


def config_of(kind, a):
    """Their configuration: the numbers that ours is made of, under their names."""
    common = dict(vocab_size=a.vocab_size, num_hidden_layers=a.layers, max_position_embeddings=64, attn_implementation="sdpa")
    common |= dict(hidden_size=a.dim, num_attention_heads=a.heads, intermediate_size=a.hidden_dim) | NO_TOKENS
    if kind == "gpt2":
        sizes = dict(
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            n_embd=a.dim,
            n_head=a.heads,
            n_layer=a.layers,
            n_inner=a.hidden_dim,
            n_positions=a.max_positions,
        )
        return transformers.GPT2Config(vocab_size=a.vocab_size, attn_implementation="sdpa", **sizes, **NO_TOKENS)
    common |= dict(num_key_value_heads=a.kv_heads, rms_norm_eps=1e-6, head_dim=a.head_dim)
    common |= dict(rope_parameters=dict(rope_type="default", rope_theta=a.base))
    if kind == "llama":
        return transformers.LlamaConfig(**common, attention_bias=a.bias, tie_word_embeddings=a.tied)
    if kind == "qwen3":
        return transformers.Qwen3Config(**common, tie_word_embeddings=a.tied)
    if kind == "mistral":
        return transformers.MistralConfig(**common, sliding_window=a.window, tie_word_embeddings=a.tied)
    if kind == "mixtral":
        experts = dict(num_local_experts=a.experts, num_experts_per_tok=a.active, experts_implementation="eager")
        return transformers.MixtralConfig(**common, **experts, tie_word_embeddings=a.tied)
    if kind == "gemma":
        return transformers.GemmaConfig(**common)
    every = a.local_layers + 1
    types = ["full_attention" if (n + 1) % every == 0 else "sliding_attention" for n in range(a.layers)]
    common |= dict(sliding_window=a.window, query_pre_attn_scalar=a.query_scale, layer_types=types)
    if kind == "gemma2":
        caps = dict(attn_logit_softcapping=a.attention_softcap, final_logit_softcapping=a.softcap)
        return transformers.Gemma2Config(**common | caps | dict(attn_implementation="eager"))
    bases = {"sliding_attention": a.local_base, "full_attention": a.base}
    ropes = {name: dict(rope_type="default", rope_theta=base) for name, base in bases.items()}
    return transformers.Gemma3TextConfig(**common | dict(rope_parameters=ropes))


CLASSES = dict(
    gpt2="GPT2LMHeadModel", llama="LlamaForCausalLM", qwen3="Qwen3ForCausalLM", mistral="MistralForCausalLM",
    mixtral="MixtralForCausalLM", gemma="GemmaForCausalLM", gemma2="Gemma2ForCausalLM", gemma3="Gemma3ForCausalLM",
)  # fmt: skip


def theirs(kind, a):
    return precise(getattr(transformers, CLASSES[kind])(config_of(kind, a)))
