"""A Marian folder's config.json: the arguments of `zoo.transformer.build`, and back. transformers are not needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from layers.checks import require

Config = Mapping[str, Any]


def number(config: Config, key: str, least: int = 1) -> int:
    value = config.get(key)
    require(type(value) is int and value >= least, key, value, f"a whole number from {least}")
    return config[key]


ACTIVATIONS = {"swish": "silu", "silu": "silu", "relu": "relu"}
SIZES = {"layers": "layers", "heads": "attention_heads", "hidden_dim": "ffn_dim"}
"""Our names and theirs, which begin with encoder_ and decoder_."""
ONLY = {
    "model_type": ("marian", ""), "scale_embedding": (True, False), "share_encoder_decoder_embeddings": (True, True),
    "tie_word_embeddings": (True, True), "static_position_embeddings": (True, True), "normalize_before": (False, False),
    "normalize_embedding": (False, False), "add_final_layer_norm": (False, False),
}  # fmt: skip
"""What our Transformer is like, and what a config means that does not say it."""


def arguments_of(config: Config) -> dict[str, Any]:
    """`MarianConfig` -> arguments of `transformer_base`.

    Errors: `ValueError` that names the key, its value and what would be right.
    """
    for key, (value, default) in ONLY.items():
        require(config.get(key, default) == value, key, config.get(key, default), f"{value} for our Transformer")
    sizes = {ours: number(config, f"encoder_{theirs}") for ours, theirs in SIZES.items()}
    for ours, theirs in SIZES.items():
        if (other := number(config, f"decoder_{theirs}")) != sizes[ours]:
            raise ValueError(f"encoder_{theirs} and decoder_{theirs} must be the same, got {sizes[ours]} and {other}")
    if not isinstance(activation := config.get("activation_function"), str) or activation not in ACTIVATIONS:
        raise ValueError(f"activation_function must be one of {', '.join(ACTIVATIONS)}, got {activation}")
    size, padding = number(config, "vocab_size"), number(config, "pad_token_id", 0)
    other = config.get("decoder_vocab_size", size)
    require(other in (size, None), "decoder_vocab_size", other, f"vocab_size, {size}")
    require(padding < size, "pad_token_id", padding, f"below vocab_size, {size}")
    arguments = {"vocab_size": size, "dim": number(config, "d_model"), **sizes, "dropout": config.get("dropout", 0.1)}
    wiring = {"padding": padding, "interleaved": False, "activation": ACTIVATIONS[activation], "bias": True}
    return arguments | wiring


def options_of(arguments: Config) -> dict[str, Any]:
    """The opposite of `arguments_of`: options of `MarianConfig`, whose decoding begins with padding, as in the published ones."""
    sizes = {f"{side}_{theirs}": arguments[ours] for ours, theirs in SIZES.items() for side in ("encoder", "decoder")}
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}  # silu is swish there
    constant = {key: value for key, (value, _) in ONLY.items() if key != "model_type"}
    return {
        **constant, **sizes, "d_model": arguments["dim"], "vocab_size": arguments["vocab_size"], "dropout": arguments["dropout"],
        "activation_function": names[arguments["activation"]], "decoder_vocab_size": arguments["vocab_size"],
        "max_position_embeddings": LONGEST, "decoder_start_token_id": arguments["padding"], "forced_eos_token_id": None,
    }  # fmt: skip


LONGEST = 512
"""Positions of which the published models keep a table."""
