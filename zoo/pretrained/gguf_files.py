"""Llamas in llama.cpp's files: ``zoo.create("smollm2_135m", weights="gguf:model.gguf")``. Needs the package gguf.

Quantised weights become float32 by its `dequantize`: llama.cpp computes with the same, and rounds activations too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layers.weights import WeightMap
from zoo.files import first_line

SIZES = {
    "embedding_length": "dim", "attention.head_count": "heads", "attention.head_count_kv": "kv_heads", "block_count": "layers",
    "feed_forward_length": "hidden_dim", "attention.layer_norm_rms_epsilon": "eps", "rope.freq_base": "base",
}  # fmt: skip
"""Names of llama.cpp, without the architecture's, and ours."""
IGNORED = {"context_length", "vocab_size", "rope.dimension_count", "attention.key_length", "attention.value_length"}
"""What says nothing of the numbers that a model computes, or is checked elsewhere."""


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, float32, in the names of Hugging Face's Llama, and the arguments of `zoo.gpt.llama`.

    Errors: `ValueError` for a file that is missing or damaged, or without the package, and for an architecture, option or tensor
            that we do not have, which it names.
    """
    try:
        from gguf import GGUFReader, dequantize  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError(f"weights 'gguf:{path}' need the package gguf: pip install gguf") from error

    if not Path(path).is_file():
        raise ValueError(f"{path} is not there: a .gguf file is expected")
    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        tensors = {x.name: torch.from_numpy(dequantize(x.data, x.tensor_type).copy()) for x in reader.tensors}
    except Exception as error:  # the package raises what comes
        raise ValueError(f"{path} is truncated or damaged, not a GGUF file ({first_line(error)})") from error
    try:
        arguments = arguments_of(fields, tensors)
        return names_of(arguments).to_ours(tensors), arguments
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def arguments_of(fields: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Errors: `ValueError` for what our Llama has not."""
    if (kind := fields.get("general.architecture")) != "llama":
        raise ValueError(f"general.architecture must be llama, got {kind!r}")
    found = {name.removeprefix("llama."): value for name, value in fields.items() if name.startswith("llama.")}
    if unknown := sorted(found.keys() - SIZES.keys() - IGNORED):
        raise ValueError(f"it has options that are unknown here: {', '.join(f'{name} = {found[name]!r}' for name in unknown)}")
    options: dict[str, Any] = {"attention.head_count_kv": found.get("attention.head_count"), "rope.freq_base": 10000.0} | found
    if lacking := [name for name in SIZES if not isinstance(options.get(name), int | float)]:
        raise ValueError(f"it must give a number as {', '.join(f'llama.{name}' for name in lacking)}")
    arguments = {ours: options[theirs] for theirs, ours in SIZES.items()}
    arguments["eps"] = float(f"{arguments['eps']:.7g}")  # a float32 in the file: 1e-5, not 9.999999747e-6
    width = arguments["dim"] // arguments["heads"]
    for name in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        if options.get(name, width) != width:
            raise ValueError(f"llama.{name} must be {width}, a head's width, got {options[name]}")
    if "token_embd.weight" not in tensors:
        raise ValueError("it must hold token_embd.weight")
    return arguments | {"vocab_size": len(tensors["token_embd.weight"]), "tied": "output.weight" not in tensors}


def names_of(arguments: dict[str, Any]) -> WeightMap:
    """Hugging Face's names and llama.cpp's, in which pairs of a query's or key's features that turn together are neighbours."""
    block, theirs = "model.layers.{i}", "blk.{i}"
    turned = "(h f pair) i -> (h pair f) i"
    rows: list[tuple[Any, ...]] = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        (f"{block}.self_attn.q_proj.weight", f"{theirs}.attn_q.weight", turned, {"h": arguments["heads"], "f": 2}),
        (f"{block}.self_attn.k_proj.weight", f"{theirs}.attn_k.weight", turned, {"h": arguments["kv_heads"], "f": 2}),
        (f"{block}.self_attn.v_proj", f"{theirs}.attn_v"),
        (f"{block}.self_attn.o_proj", f"{theirs}.attn_output"),
        (f"{block}.input_layernorm", f"{theirs}.attn_norm"),
        (f"{block}.post_attention_layernorm", f"{theirs}.ffn_norm"),
        *((f"{block}.mlp.{name}_proj", f"{theirs}.ffn_{name}") for name in ("gate", "up", "down")),
    ]
    return WeightMap(*rows, *([] if arguments["tied"] else [("lm_head", "output")]))
