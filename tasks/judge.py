"""A classifier of our own, which measures generated images: its features for distances, its classes for accuracy.

It is a run of `tasks.image_classification` on the same data, trained once for all generators of one --runs_dir, so that their
figures can be compared.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import zoo
from tasks.data import spread
from tasks.data.images import ImageData
from tasks.image_measures import measures
from tasks.options import UserError, data_of
from tasks.saved import program_of, read_object
from zoo.pretrained.preprocess import normalise

PROGRAM, MODEL = "tasks.image_classification", "resnet20"
LOOKS = 20_000
"""Images that it looks at in training, in whole passes, two at least."""
MANY = dict(augment="none", batch_size=128, optimizer="sgd", lr=0.2, weight_decay=0.001, label_smoothing=0.0)
"""How it learns from as many images or more: 91.8 % of Fashion-MNIST's test images after two passes; by the task's own defaults,
which are for few, one pass had 79.9 %."""
BATCH = 256


class Seen(NamedTuple):
    """Of images: features (n, d), scaled so that those of the training set have variance 1 in the mean, and classes (n,)."""

    features: Tensor
    classes: Tensor


class Judge:
    """The classifier in a run's folder. Errors: `UserError` if it was trained on other data."""

    def __init__(self, folder: Path, data: ImageData) -> None:
        require_judge(folder, data)
        self.folder, self.model, self.data = folder, zoo.load(folder / "best.safetensors").eval(), data
        self.scale = 1.0
        seen = self.look(some(data.train.pixels, 2000))
        self.scale = float(seen.features.var(0).mean().rsqrt())

    @torch.inference_mode()
    def look(self, images: Tensor) -> Seen:
        """images: uint8 (n, c, y, x)."""
        features, classes, train = [], [], self.data.train
        output = self.model.get_submodule(self.model.output_layers[0])
        handle = output.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0].flatten(1)))
        try:
            for part in images.split(BATCH):
                logits = self.model(normalise(part.float().div_(255), train.mean, train.std))
                classes.append(logits.argmax(1))
        finally:
            handle.remove()
        return Seen(torch.cat(features) * self.scale, torch.cat(classes))

    def measure(self, real: Seen, images: Tensor, labels: Tensor | None) -> dict[str, float]:
        """Of generated images (n, c, y, x) uint8 against real ones; accuracy where they were made for labels (n,)."""
        seen = self.look(images)
        accuracy = {} if labels is None else {"accuracy": float((seen.classes == labels).float().mean())}
        return measures(real.features, seen.features) | accuracy


def some(pixels: Any, count: int) -> Tensor:
    """So many images, evenly spread over all."""
    return pixels[spread(len(pixels), count)]


def judge_folder(runs_dir: Path, judge: str, source: str, image_size: int) -> Path:
    """--judge as a path or the name of a run, else the common judge of this data."""
    if judge:
        return Path(judge) if Path(judge).is_dir() else runs_dir / judge
    return runs_dir / f"judge-{Path(source.removeprefix('folder:')).name or 'folder'}-{image_size}"


def require_judge(folder: Path, data: ImageData) -> None:
    """Errors: `UserError` if the folder is no finished classifier of this data."""
    if not (folder / "summary.json").is_file():
        raise UserError(f"--judge {folder} is no finished run of {PROGRAM}")
    if program_of(folder) != PROGRAM:
        raise UserError(f"--judge {folder} is a run of {program_of(folder) or 'no program'}, not of {PROGRAM}")
    known, wanted = data_of(read_object(folder / "options.json")) or {}, data.identity()
    for name in ("classes", "train"):
        if known.get(name) != wanted[name]:
            raise UserError(
                f"--judge {folder} was trained on other images: give another one, or remove it to have it trained anew"
            )


def train_judge(folder: Path, options: Any, data: ImageData) -> None:
    """In a process of its own, so that no random number of this one depends on it. Errors: `UserError` if it fails."""
    epochs = max(2, round(LOOKS / len(data.train)))
    words = {
        "data": options.data, "data_root": options.data_root, "image_size": data.image_size, "model": MODEL, "epochs": epochs,
        "runs_dir": folder.parent, "name": folder.name, "device": options.device, "tracker": "none",
        **(MANY if len(data.train) >= LOOKS else {}),
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        PROGRAM,
        "train",
        *words_of(words),
        *["--skip_bad"] * options.skip_bad,
        *["--resume"] * folder.exists(),
    ]
    print(f"a classifier to measure with is trained first, {folder}: {epochs} epochs of {len(data.train):,} images", flush=True)
    alone = {name: value for name, value in os.environ.items() if name not in TORCHRUN}
    done = subprocess.run(command, env=alone, text=True, capture_output=True)
    if done.returncode:
        *_, why = ["", *done.stderr.strip().splitlines()]
        raise UserError(f"the classifier {folder} could not be trained: {why or done.returncode}")
    print(done.stdout.strip().splitlines()[-1], flush=True)


TORCHRUN = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "ROLE_RANK"}


def words_of(options: dict[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        yield from (f"--{name}", str(value))
