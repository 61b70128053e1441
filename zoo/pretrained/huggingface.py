"""Hugging Face both ways: a config.json of theirs -> the arguments of our model, and our model -> theirs.

    arguments_of(read_json("folder/config.json"))    -> our arguments; ``zoo.create(name, weights="hf:folder")`` uses them
    to_huggingface(model)                            -> their native class, for `generate`, `pipeline`, `save_pretrained`

A config is read strictly: an option that would change what the model computes, and that ours has not, is an error that names it.
`transformers` itself takes options that it does not know in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import log
from typing import Any

from zoo import gpt, transformer
from zoo.model import Model
from zoo.pretrained import marian

IGNORED = {
    "architectures", "auto_map", "bos_token_id", "dtype", "eos_token_id", "id2label", "initializer_range", "label2id",
    "max_position_embeddings", "model_type", "n_ctx", "output_router_logits", "pad_token_id", "pretraining_tp",
    "router_aux_loss_coef", "torch_dtype", "transformers_version", "use_cache", "_name_or_path", "task_specific_params",
    "gradient_checkpointing", "chunk_size_feed_forward", "problem_type", "output_attentions", "output_hidden_states",
    "return_dict", "is_encoder_decoder", "is_decoder", "add_cross_attention", "use_sliding_window", "max_window_layers",
    "cache_implementation", "unsloth_fixed", "mlm_probability",
}  # fmt: skip
"""What says nothing of the numbers that a model computes, or is checked elsewhere."""


@dataclass(frozen=True)
class Architecture:
    """One of their classes, and the function that builds ours.

    rows:  their option -> our argument, of equal values. default: of options that are left out, where theirs is not ours.
    fixed: their option -> the values that it may have, for ours has no other.
    extra: their config -> more of our arguments; given back by `back`: our arguments -> more of their options.
    """

    build: Callable[..., Any]
    rows: Mapping[str, str]
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    extra: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: {}
    back: Callable[[dict[str, Any]], dict[str, Any]] = lambda arguments: {}


GPT2 = {"vocab_size": "vocab_size", "n_embd": "dim", "n_head": "heads", "n_layer": "layers", "n_positions": "max_positions",
        "n_inner": "hidden_dim", "resid_pdrop": "dropout"}  # fmt: skip
SIZES = {"vocab_size": "vocab_size", "hidden_size": "dim", "num_attention_heads": "heads", "num_hidden_layers": "layers",
         "intermediate_size": "hidden_dim", "num_key_value_heads": "kv_heads", "head_dim": "head_dim", "rms_norm_eps": "eps",
         "attention_dropout": "dropout"}  # fmt: skip
TIED = {**SIZES, "tie_word_embeddings": "tied"}
SILU = {"hidden_act": ("silu", "swish"), "mlp_bias": (False,)}
GELU = {"hidden_activation": ("gelu_pytorch_tanh", None), "hidden_act": ("gelu_pytorch_tanh", "gelu", None),
        "attention_bias": (False,), "tie_word_embeddings": (True,), "use_bidirectional_attention": (False, None)}  # fmt: skip
CAPS = {
    "query_pre_attn_scalar": "query_scale",
    "attn_logit_softcapping": "attention_softcap",
    "final_logit_softcapping": "softcap",
}


def rotary(config: Mapping[str, Any], name: str | None = None) -> dict[str, Any]:
    """base and scaling, in version 5's form, of all layers or of one type of them, or in version 4's."""
    known = config.get("rope_parameters")
    rope = dict((known or {}) if name is None else (known or {}).get(name) or {})
    rope |= {} if known else dict(config.get("rope_scaling") or {})
    base = rope.pop("rope_theta", None) or config.get("rope_theta") or 10000.0
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    if rope.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("rope_parameters: partial_rotary_factor must be 1")
    if kind == "default":
        return {"base": base, "scaling": None}
    if kind not in SCALINGS:
        raise ValueError(f"rope_parameters: rope_type must be one of {', '.join(SCALINGS)}, got {kind!r}")
    original = rope.pop("original_max_position_embeddings", None) or config.get("original_max_position_embeddings")
    longest = config.get("max_position_embeddings")
    scaling: dict[str, Any] = {"kind": kind}
    if kind != "linear":
        scaling["original_length"] = longest if kind == "dynamic" else original or longest
    if rope.get("factor") is None and kind in ("yarn", "longrope"):
        rope["factor"] = longest / scaling["original_length"]
    scales = rope.pop("mscale", None), rope.pop("mscale_all_dim", None)
    if all(scales) and rope.get("attention_factor") is None:
        above, below = (0.1 * scale * log(rope["factor"]) + 1 if rope["factor"] > 1 else 1.0 for scale in scales)
        rope["attention_factor"] = above / below
    for theirs, value in rope.items():
        if theirs not in SCALINGS[kind]:
            raise ValueError(f"rope_parameters: {theirs} is unknown of rope_type {kind}")
        if value is not None:
            scaling[SCALINGS[kind][theirs]] = value
    return {"base": base, "scaling": scaling}


SCALINGS = {
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {"factor": "factor", "low_freq_factor": "low", "high_freq_factor": "high"},
    "yarn": {
        "factor": "factor",
        "attention_factor": "attention",
        "beta_fast": "fast",
        "beta_slow": "slow",
        "truncate": "truncate",
    },
    "longrope": {"factor": "factor", "short_factor": "short", "long_factor": "long", "attention_factor": "attention"},
}  # fmt: skip
"""Of each rope type, their names of its numbers, and ours."""
ROTARY = {"rope_parameters", "rope_scaling", "rope_theta", "original_max_position_embeddings", "partial_rotary_factor"}


def rope_parameters(arguments: Mapping[str, Any], base: str = "base") -> dict[str, Any]:
    """Their form of our base and scaling."""
    scaling = dict(arguments.get("scaling") or {}) if base == "base" else {}
    kind = scaling.pop("kind", "default")
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": arguments[base]}
    if "original_length" in scaling:
        rope["original_max_position_embeddings"] = scaling.pop("original_length")
    return rope | {theirs: scaling[ours] for theirs, ours in SCALINGS.get(kind, {}).items() if ours in scaling}


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


ARCHITECTURES: dict[str, Architecture] = {
    "GPT2LMHeadModel": Architecture(
        gpt.gpt2, GPT2, back=gpt2_back,
        fixed={"activation_function": ("gelu_new", "gelu_pytorch_tanh"), "layer_norm_epsilon": (1e-5,),
               "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "reorder_and_upcast_attn": (False,),
               "tie_word_embeddings": (True,)},
    ),
    "LlamaForCausalLM": Architecture(gpt.llama, TIED, SILU, biases, biases_back),
    "MistralForCausalLM": Architecture(gpt.llama, TIED | {"sliding_window": "window"}, SILU, rotary, llama_back),
    "MixtralForCausalLM": Architecture(
        gpt.llama, TIED | {"sliding_window": "window", "num_local_experts": "experts", "num_experts_per_tok": "active"},
        SILU | {"router_jitter_noise": (0.0,)}, rotary, llama_back,
    ),
    "Qwen3ForCausalLM": Architecture(
        gpt.llama, TIED, SILU | {"attention_bias": (False,), "sliding_window": (None,)},
        lambda config: rotary(config) | {"query_key_norm": True}, llama_back,
    ),
    "GemmaForCausalLM": Architecture(gpt.gemma, SIZES, GELU, rotary, llama_back),
    "Gemma2ForCausalLM": Architecture(gpt.gemma, SIZES | CAPS | {"sliding_window": "window"}, GELU, gemma2, gemma2_back),
    "Gemma3ForCausalLM": Architecture(gpt.gemma, SIZES | CAPS | {"sliding_window": "window"}, GELU, gemma3, gemma3_back),
}  # fmt: skip
READ_ELSEWHERE = {*ROTARY, "attention_bias", "layer_types", "sliding_window_pattern", "_sliding_window_pattern",
                  "rope_local_base_freq", "embd_pdrop", "attn_pdrop", "hidden_activation"}  # fmt: skip
PREFIX = "summary_"
"""Of GPT-2's options for another head."""


def arguments_of(config: Mapping[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Their config, as JSON -> the function that builds our model, and its arguments.

    Errors: `ValueError` that names an architecture or an option which we do not have.
    """
    names = config.get("architectures") or []
    kind = next((name for name in names if name in ARCHITECTURES), None)
    if kind is None:
        raise ValueError(f"architectures must be one of {', '.join(ARCHITECTURES)}, got {', '.join(map(str, names)) or 'none'}")
    found = ARCHITECTURES[kind]
    for name, allowed in found.fixed.items():
        if name in config and config[name] not in allowed:
            raise ValueError(f"{name} of {kind} must be {' or '.join(map(repr, allowed))}, got {config[name]!r}")
    known = IGNORED | READ_ELSEWHERE | found.rows.keys() | found.fixed.keys()
    if unknown := sorted(name for name in config.keys() - known if not name.startswith(PREFIX)):
        raise ValueError(
            f"{kind} has options that are unknown here: {', '.join(f'{name} = {config[name]!r}' for name in unknown)}"
        )
    arguments = {ours: config[theirs] for theirs, ours in found.rows.items() if theirs in config}
    if kind == "GPT2LMHeadModel" and len({config.get(name, 0.1) for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}) > 1:
        raise ValueError("resid_pdrop, embd_pdrop and attn_pdrop of GPT2LMHeadModel must be equal")
    return found.build, arguments | found.extra(dict(config))


def read(config: Mapping[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]] | None:
    """As `arguments_of`, and of Marian too; None for a config that is no language model's, whose arguments have to be given."""
    if config.get("model_type") == "marian":
        return transformer.build, marian.arguments_of(config)
    kinds = config.get("architectures") or []
    return arguments_of(config) if any(str(kind).endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds) else None


def to_huggingface(model: Model) -> Any:
    """Their native model with our weights, in our dtype, in evaluation.

    Errors: `ValueError` for a model that `zoo.create` did not build, or that none of their classes is, or without `transformers`.
    """
    import zoo

    try:
        import transformers
    except ImportError as error:
        raise ValueError("to_huggingface needs the package transformers: pip install transformers") from error

    name, given = model.config.get("model"), model.config.get("arguments", {})
    if name is None:
        raise ValueError("model must come from zoo.create or zoo.load, for its arguments become their config")
    arguments = zoo.arguments(name) | given
    kind = class_of(zoo.MODELS[name], arguments)
    found, theirs = ARCHITECTURES[kind], getattr(transformers, kind)
    options = {theirs: arguments[ours] for theirs, ours in found.rows.items() if ours in arguments} | found.back(arguments)
    config = theirs.config_class(**{key: value for key, value in options.items() if value is not None or key == "sliding_window"})
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    state = model.maps["huggingface"].export(model)
    made = theirs(config).to(next(iter(state.values())).dtype)
    made.load_state_dict(state, strict=True)
    return made.eval()


def class_of(build: Any, arguments: Mapping[str, Any]) -> str:
    """Which of their classes our model is."""
    function = getattr(build, "func", build)
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
    raise ValueError(f"model must be one of {', '.join(ARCHITECTURES)}, got one of {function.__module__}")
