"""Marian's published translators, in folders as `transformers` keeps them: read to be trained on, and written back.

What a folder holds: config.json, model.safetensors (or pytorch_model.bin), and the tokenizer, which is vocab.json, source.spm and
target.spm, or tokenizer.json. Proven against `transformers.MarianMTModel` and `MarianTokenizer`, without which this works.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layers.checks import require
from layers.weights import Stored
from tasks.data import DataError
from tasks.data.pieces import VOCABULARY, Pieces
from tasks.data.tokenizer import TextTokenizer, load_tokenizer
from tasks.generation_config import generation_of
from zoo import files
from zoo.pretrained import containers, marian
from zoo.transformer import names_of_marian

FORM = "transformer_base"
"""The zoo's name of the Transformer that Marian's are variants of."""
KEPT = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
"""Files of JSON that are written back as they came."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
TIED = ("model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")


@dataclass
class Published:
    """A folder's model and tokenizer. arguments: those of `zoo.create`. kept: `KEPT` files by name."""

    arguments: dict[str, Any]
    state: dict[str, Tensor | Stored]
    tokenizer: TextTokenizer
    start: int
    kept: dict[str, Any]

    def load(self, model: Any) -> None:
        model.maps["huggingface"].load(model, self.state)


def read(folder: Path) -> Published:
    """Errors: `DataError` for a file that is missing or damaged, and for a model that our Transformer cannot be."""
    if not folder.is_dir():
        raise DataError(f"hf:{folder} is not there, or no folder")
    config = files.read_json(folder / "config.json")
    arguments, start = arguments_of(config, str(folder / "config.json"))
    tokenizer = load_tokenizer(folder).starting(start)
    tokenizer.require_vocab_size(arguments["vocab_size"])
    for kind in ("pad", "eos"):
        if (said := config.get(f"{kind}_token_id")) != (own := getattr(tokenizer, kind)):
            raise DataError(f"{folder / 'config.json'}: {kind}_token_id must be the tokenizer's, {own}, got {said}")
    kept = {name: files.read_json(folder / name) for name in KEPT if (folder / name).is_file()}
    if kept.get("tokenizer_config.json", {}).get("separate_vocabs"):
        raise DataError(f"{folder / 'tokenizer_config.json'} has separate_vocabs: our Transformer has one vocabulary")
    generation_of(kept, tokenizer)  # or what is wrong with it
    return Published(arguments, read_state(folder, arguments["vocab_size"]), tokenizer, start, kept)


def arguments_of(config: Mapping[str, Any], name: str) -> tuple[dict[str, Any], int]:
    """Arguments of `zoo.create`, and the token that decoding starts with."""
    try:
        arguments = marian.arguments_of(config)
        start, size = marian.number(config, "decoder_start_token_id", 0), arguments["vocab_size"]
        require(start < size, "decoder_start_token_id", start, f"below vocab_size, {size}")
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    return arguments, start


def read_state(folder: Path, vocab_size: int) -> dict[str, Tensor | Stored]:
    """All tensors; the bias of the output is zero where the file has none."""
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder} must hold one of {', '.join(WEIGHTS)}")
    state = files.read_tensors(path, containers.read_any)
    return {"final_logits_bias": torch.zeros(1, vocab_size), **state}


def write(model: Any, tokenizer: TextTokenizer, folder: Path) -> list[str]:
    """A folder as `read` takes it, and `from_pretrained`, with the model's weights; the names of its files.

    Errors: `DataError` if the model does not come from such a folder, or if there is something where it is to be.
    """
    kept = model.config.get("huggingface")
    if not isinstance(kept, dict) or not all(isinstance(file, dict) for file in (kept.get("config.json"), *kept.values())):
        raise DataError(f"{model.config['model']} is not Marian's: only what `train --init hf:PATH` began with can be exported")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"--out {folder} exists already: give another folder")
    kept = dict(kept)
    kept["config.json"] = kept["config.json"] | {key: "float32" for key in ("dtype", "torch_dtype") if key in kept["config.json"]}
    weights = names_of_marian(model, kept["config.json"].get("max_position_embeddings", 512)).export(model)
    weights = {name: x for name, x in weights.items() if name not in TIED[1:] and "embed_positions" not in name}
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(tokenizer.inner, Pieces):
        for side, content in tokenizer.inner.models.items():
            files.write_bytes(folder / f"{side}.spm", content)
        files.write_json(folder / VOCABULARY, tokenizer.inner.vocabulary)
    else:
        tokenizer.save(folder / "tokenizer.json")
    files.write_tensors(folder / WEIGHTS[0], weights, {"format": "pt"})
    for name, content in kept.items():
        files.write_json(folder / name, content)
    return sorted(path.name for path in folder.iterdir())
