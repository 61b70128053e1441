"""Hugging Face's decoder-only language models: what their options are called here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo import gpt
from zoo.pretrained.architecture import Architecture
from zoo.pretrained.rotary_options import ROTARY, rope_parameters, rotary

GPT2 = {"vocab_size": "vocab_size", "n_embd": "dim", "n_head": "heads", "n_layer": "layers", "n_positions": "max_positions",
        "n_inner": "hidden_dim", "resid_pdrop": "dropout"}  # fmt: skip
SIZES = {"vocab_size": "vocab_size", "hidden_size": "dim", "num_attention_heads": "heads", "num_hidden_layers": "layers",
         "intermediate_size": "hidden_dim", "num_key_value_heads": "kv_heads", "head_dim": "head_dim", "rms_norm_eps": "eps",
         "attention_dropout": "dropout"}  # fmt: skip
TIED = {**SIZES, "tie_word_embeddings": "tied"}
SILU = {"hidden_act": ("silu", "swish"), "mlp_bias": (False,), "rope_interleaved": (False,)}
GELU = {"hidden_activation": ("gelu_pytorch_tanh", None), "hidden_act": ("gelu_pytorch_tanh", "gelu", None),
        "attention_bias": (False,), "tie_word_embeddings": (True,), "use_bidirectional_attention": (False, None)}  # fmt: skip
CAPS = {
    "query_pre_attn_scalar": "query_scale",
    "attn_logit_softcapping": "attention_softcap",
    "final_logit_softcapping": "softcap",
}


def llama_back(arguments: Mapping[str, Any]) -> dict[str, Any]:
    longest = (arguments.get("scaling") or {}).get("original_length")
    return {"rope_parameters": rope_parameters(arguments)} | ({"max_position_embeddings": longest} if longest else {})


def biases(config: Mapping[str, Any]) -> dict[str, Any]:
    return rotary(config) | {"bias": bool(config.get("attention_bias")), "output_bias": bool(config.get("attention_bias"))}


def biases_back(arguments: Mapping[str, Any]) -> dict[str, Any]:
    if arguments.get("output_bias") not in (None, arguments["bias"]):
        raise ValueError("output_bias must be the same as bias for Hugging Face's Llama")
    return llama_back(arguments) | {"attention_bias": arguments["bias"]}


def every(config: Mapping[str, Any]) -> int:
    """How many layers of sliding attention stand before each of full attention."""
    types = config.get("layer_types")
    if types is None:
        return config.get("sliding_window_pattern", config.get("_sliding_window_pattern", 2)) - 1
    local = types.index("full_attention") if "full_attention" in types else len(types)
    expected = ["sliding_attention" if (n + 1) % (local + 1) else "full_attention" for n in range(len(types))]
    if types != expected:
        raise ValueError(f"layer_types must repeat {local} of sliding and one of full attention, got {types}")
    return local


def gemma2(config: Mapping[str, Any]) -> dict[str, Any]:
    return rotary(config) | {"local_layers": every(config), "sandwich": True}


def gemma3(config: Mapping[str, Any]) -> dict[str, Any]:
    ropes = config.get("rope_parameters") or {}
    local = (ropes.get("sliding_attention") or {}).get("rope_theta", config.get("rope_local_base_freq", 10000.0))
    whole = rotary(config, "full_attention") if ropes else rotary({"rope_theta": 1e6} | dict(config))
    return whole | {"local_layers": every(config), "local_base": local, "sandwich": True, "query_key_norm": True}


def layer_types(arguments: Mapping[str, Any]) -> list[str]:
    every = arguments["local_layers"] + 1
    return ["full_attention" if (n + 1) % every == 0 else "sliding_attention" for n in range(arguments["layers"])]


def gemma2_back(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {**llama_back(arguments), "layer_types": layer_types(arguments)}


def gemma3_back(arguments: Mapping[str, Any]) -> dict[str, Any]:
    ropes = {"full_attention": rope_parameters(arguments), "sliding_attention": rope_parameters(arguments, "local_base")}
    return {"rope_parameters": ropes, "layer_types": layer_types(arguments)}


def gpt2_back(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"embd_pdrop": arguments["dropout"], "attn_pdrop": arguments["dropout"]}


PLAIN = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "num_key_value_heads": None, "head_dim": None}
CAPPED = {"sliding_window": 4096, "query_pre_attn_scalar": 256}
DECODERS: dict[str, Architecture] = {
    "GPT2LMHeadModel": Architecture(
        gpt.gpt2, GPT2, back=gpt2_back, equal={"resid_pdrop": {"embd_pdrop": 0.1, "attn_pdrop": 0.1}},
        defaults={"n_positions": 1024, "n_inner": None, "resid_pdrop": 0.1},
        fixed={"activation_function": ("gelu_new", "gelu_pytorch_tanh"), "layer_norm_epsilon": (1e-5,),
               "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "reorder_and_upcast_attn": (False,),
               "tie_word_embeddings": (True,)},
    ),
    "LlamaForCausalLM": Architecture(gpt.llama, TIED, SILU, biases, biases_back, PLAIN),
    "MistralForCausalLM": Architecture(
        gpt.llama, TIED | {"sliding_window": "window"}, SILU, rotary, llama_back,
        PLAIN | {"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    "MixtralForCausalLM": Architecture(
        gpt.llama, TIED | {"sliding_window": "window", "num_local_experts": "experts", "num_experts_per_tok": "active"},
        SILU | {"router_jitter_noise": (0.0,)}, rotary, llama_back,
        PLAIN | {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "sliding_window": None, "num_local_experts": 8},
    ),
    "Qwen3ForCausalLM": Architecture(
        gpt.llama, TIED, SILU | {"attention_bias": (False,), "sliding_window": (None,)},
        lambda config: rotary(config) | {"query_key_norm": True}, llama_back, PLAIN | {"head_dim": 128},
    ),
    "GemmaForCausalLM": Architecture(gpt.gemma, SIZES, GELU, rotary, llama_back, {"rms_norm_eps": 1e-6}),
    "Gemma2ForCausalLM": Architecture(
        gpt.gemma, SIZES | CAPS | {"sliding_window": "window"}, GELU, gemma2, gemma2_back,
        CAPPED | {"rms_norm_eps": 1e-6, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "Gemma3ForCausalLM": Architecture(
        gpt.gemma, SIZES | CAPS | {"sliding_window": "window"}, GELU, gemma3, gemma3_back, CAPPED | {"rms_norm_eps": 1e-6}
    ),
}  # fmt: skip
READ_ELSEWHERE = {*ROTARY, "attention_bias", "layer_types", "sliding_window_pattern", "_sliding_window_pattern",
                  "rope_local_base_freq", "hidden_activation"}  # fmt: skip


def class_of(function: Any, arguments: Mapping[str, Any]) -> str | None:
    """Which of their classes our model is; None for models that are no decoder-only ones."""
    if function is gpt.gpt2:
        return "GPT2LMHeadModel"
    if function is gpt.gemma:
        kinds = {(False, False): "GemmaForCausalLM", (True, False): "Gemma2ForCausalLM", (True, True): "Gemma3ForCausalLM"}
        return kinds[arguments["sandwich"], arguments["query_key_norm"]]
    if function is gpt.llama:
        if arguments["experts"] is not None:
            return "MixtralForCausalLM"
        if arguments["query_key_norm"]:
            return "Qwen3ForCausalLM"
        return "LlamaForCausalLM" if arguments["window"] is None else "MistralForCausalLM"
    return None
