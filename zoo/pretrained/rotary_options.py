"""Rotary positions in Hugging Face's configs: `rope_parameters`, or version 4's `rope_theta` and `rope_scaling`, and ours."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Any


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
