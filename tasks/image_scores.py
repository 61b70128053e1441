"""What a classifier says of pictures."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from tasks.classes import Measured
from tasks.data.images import Images


def measure(model: nn.Module, context: AbstractContextManager[Any], images: Images, batch_size: int) -> Measured:
    """On the model's device, within `context`, as `tasks.saved.placed` gives both; what comes back is on the CPU."""
    batches = torch.arange(len(images)).split(batch_size)
    return Measured(torch.cat([log_probabilities(model, context, images.batch(rows)[0]) for rows in batches]), images.labels)


def log_probabilities(model: nn.Module, context: AbstractContextManager[Any], images: Tensor) -> Tensor:
    """images (b, c, y, x), normalised -> (b, classes)"""
    device = next(model.parameters()).device
    with torch.inference_mode(), context:
        return model(images.to(device)).float().log_softmax(-1).cpu()
