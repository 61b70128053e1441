"""Bytes of memory that loading takes at its peak, beside those of the loaded weights: a program that prints them as JSON.

Each way to load runs in a fork of one process, which has imported everything and loaded a small model before: a fork begins with
a peak of its own. `ru_maxrss` would begin with that of whoever started the process.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import zoo
from zoo import files

SIZES = {
    "small": ("resnet20", dict(dim=8, hidden_dim=16, layers=1, vocab_size=10)),
    "large": ("resnet50", dict(dim=512, hidden_dim=2048, layers=3, vocab_size=37_000)),
}
"""An image classifier, and a translator whose table of embeddings is nearly half of it."""
OPTIONS = dict(heads=8, interleaved=False, bias=True)
TIED = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")


def write(folder: Path, images: str, text: dict[str, Any]) -> None:
    folder.mkdir()
    model = zoo.create("transformer_base", **OPTIONS, **text)
    zoo.save(model, folder / "own")
    for naming in ("torch", "huggingface"):
        state = model.maps[naming].export(model)
        state = {name: x for name, x in state.items() if name not in TIED and "embed_positions" not in name}
        shards: list[dict[str, Any]] = [{}, {}, {}]
        for n, name in enumerate(sorted(state)):
            shards[3 * n // len(state)][name] = state[name]
        (folder / naming).mkdir()
        for n, shard in enumerate(shards):
            files.write_tensors(folder / naming / f"model-{n}.safetensors", shard)
        index = {name: f"model-{n}.safetensors" for n, shard in enumerate(shards) for name in shard}
        files.write_json(folder / naming / "model.safetensors.index.json", {"weight_map": index})
    files.write_tensors(folder / "half.safetensors", {name: x.bfloat16() for name, x in state.items()})
    classifier = zoo.create(images)
    files.write_tensors(folder / "images.safetensors", classifier.maps["torchvision"].export(classifier))


def ways(folder: Path, images: str, text: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    def translator(weights: str | Path) -> Any:
        return zoo.create("transformer_base", weights=weights, **OPTIONS, **text)

    return {
        "own": lambda: zoo.load(folder / "own"),
        "hugging face": lambda: translator(f"hf:{folder}/huggingface"),
        "widened": lambda: translator(f"hf:{folder}/half.safetensors"),
        "split": lambda: translator(folder / "torch"),
        "new output layer": lambda: zoo.create(images, weights=folder / "images.safetensors", num_classes=7),
    }


def forked(run: Callable[[], Any]) -> Any:
    """What a function returns in a process of its own."""
    read, written = os.pipe()
    if (child := os.fork()) == 0:
        os.write(written, json.dumps(run()).encode())
        os._exit(0)
    os.close(written)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return json.loads(answer)


def resident(what: str) -> int:
    """Bytes of this process: "VmRSS" those of now, "VmHWM" the most there were."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def measured(load: Callable[[], Any], small: Callable[[], Any]) -> tuple[int, int]:
    small()  # a fork has to map its libraries anew
    before = resident("VmRSS")
    model = load()
    grown = resident("VmHWM") - before
    tensors = [*model.parameters(), *model.buffers()]
    assert not any(x.is_meta for x in tensors)
    return grown, sum(x.nbytes for x in tensors)


if __name__ == "__main__":
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "small", *SIZES["small"])
        small, large = (ways(folder / size, *SIZES[size]) for size in SIZES)
        for load in small.values():
            load()
        forked(partial(write, folder / "large", *SIZES["large"]))
        print(json.dumps({way: forked(partial(measured, large[way], small[way])) for way in large}))
