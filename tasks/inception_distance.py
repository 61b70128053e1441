"""The Frechet inception distance of the literature, as torchmetrics measures it, where its network is on this machine.

Nothing is downloaded. Source: Heusel et al., 2017 (arXiv 1706.08500).
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BATCH = 64
MODULES = ("torchmetrics.image.fid", "torch_fidelity.feature_extractor_inceptionv3")


def told(real: Tensor, made: Tensor, device: torch.device) -> str:
    """The distance of made images from real ones, both uint8 (n, c, y, x) of one or three channels; or why there is none."""
    try:
        network = installed()
    except LookupError as error:
        return f"torchmetrics' Frechet inception distance is left out: {error}"
    return f"torchmetrics' Frechet inception distance {distance(real, made, device, **network):.3f}"


def installed() -> dict[str, Any]:
    """Options of `FrechetInceptionDistance` that need no network connection. Errors: `LookupError` that says what is missing."""
    try:
        _, extractor = (importlib.import_module(name) for name in MODULES)
    except ImportError as error:
        raise LookupError(str(error)) from error
    name = extractor.URL_INCEPTION_V3.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        raise LookupError(f"there is no {path}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(name.removesuffix(".pth").rpartition("-")[2]):  # torch.hub names files so
        raise LookupError(f"{path} is damaged: its SHA-256 begins with {found[:8]}")
    return {"feature_extractor_weights_path": str(path)}


def distance(real: Tensor, made: Tensor, device: torch.device, **options: Any) -> float:
    """Options: those of `FrechetInceptionDistance`, such as `feature`, a module from uint8 (n, 3, y, x) to features (n, d)."""
    metric = importlib.import_module(MODULES[0]).FrechetInceptionDistance(**options).to(device)
    for images, are_real in ((real, True), (made, False)):
        for part in images.split(BATCH):
            metric.update(part.expand(-1, 3, -1, -1).to(device), real=are_real)
    return float(metric.compute())
