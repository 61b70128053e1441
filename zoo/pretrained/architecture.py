"""What a class of Hugging Face's is here: one row of the tables in `decoder_options` and `encoder_options`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

IGNORED = {
    "architectures", "auto_map", "bos_token_id", "cls_token_id", "dtype", "eos_token_id", "finetuning_task", "id2label",
    "initializer_range", "is_llama_config", "label2id", "max_position_embeddings", "model_type", "n_ctx", "num_labels",
    "output_router_logits", "pad_token_id", "pretraining_tp", "router_aux_loss_coef", "sep_token_id", "torch_dtype",
    "transformers.js_config", "transformers_version", "use_cache", "_name_or_path", "task_specific_params",
    "gradient_checkpointing", "chunk_size_feed_forward", "problem_type", "output_attentions", "output_hidden_states",
    "output_past", "return_dict", "is_encoder_decoder", "is_decoder", "add_cross_attention", "use_sliding_window",
    "max_window_layers", "cache_implementation", "unsloth_fixed", "mlm_probability",
}  # fmt: skip
"""What says nothing of the numbers that a model computes, or is checked elsewhere."""


@dataclass(frozen=True)
class Architecture:
    """One of their classes, and the function that builds ours.

    rows:     their option -> our argument, of equal values.
    defaults: their option -> what it is where a config leaves it out, if ours is another.
    fixed:    their option -> the values that it may have, for ours has no other.
    equal:    their options that must have the value of this row -> what they are where a config leaves them out.
    given:    arguments of ours that the class itself tells.
    extra:    their config -> more of our arguments; given back by `back`: our arguments -> more of their options.
    """

    build: Callable[..., Any]
    rows: Mapping[str, str]
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    extra: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: {}
    back: Callable[[dict[str, Any]], dict[str, Any]] = lambda arguments: {}
    defaults: Mapping[str, Any] = field(default_factory=dict)
    equal: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)


def made_by(build: Any) -> tuple[Any, tuple[Any, ...]]:
    """The function that builds a model, and the parts that it is given: equal for variants of one architecture."""
    return getattr(build, "func", build), getattr(build, "args", ())
