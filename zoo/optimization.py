"""A model made fast for inference: batch norms folded, channels last, compiled with its weights as constants.

Of a model that decodes, with a method `start`, the encoder and one step of the decoder are compiled, each as a whole.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from layers.convolution import fold_norms


class Optimized(nn.Module):
    """What `optimize` returns: inference only; no parameters to train, no state to save."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, channels_last: bool) -> None:
        super().__init__()
        self.dtype, self.channels_last = dtype, channels_last
        self.compiled = torch.compile(model, options={"freezing": True})

    def forward(self, images: Tensor) -> Any:
        with torch.no_grad():
            images = images.to(self.dtype)
            return self.compiled(images.contiguous(memory_format=torch.channels_last) if self.channels_last else images)


def optimize(model: nn.Module, example: Tensor, dtype: torch.dtype | None = None) -> Any:
    """A faster copy of `model` for inference, compiled by one call on `example`; the model itself is left alone.

    example: an input of the size to come, (b, c, y, x) or source tokens (b, n). Another size works and compiles once more.
    dtype:   what to compute in, by default the model's own; `torch.bfloat16` trades three digits for speed.
    Equal to the model's eval output up to rounding in that dtype.
    """
    dtype = dtype or next(p.dtype for p in model.parameters())
    if hasattr(model, "start"):
        return optimize_decoding(model, example, dtype)
    channels_last = example.ndim == 4
    fast = fold_norms(copy.deepcopy(model).eval()).requires_grad_(False).to(dtype)
    if channels_last:
        fast = fast.to(memory_format=torch.channels_last)
    optimized = Optimized(fast, dtype, channels_last).eval()
    optimized(example)
    return optimized


def optimize_decoding(model: Any, example: Tensor, dtype: torch.dtype) -> Any:
    """A copy whose encoder and decoding step are compiled by a few steps on `example`; used like the model itself."""
    fast = copy.deepcopy(model).eval().requires_grad_(False).to(dtype)
    for name in ("encode", "next_logits"):
        setattr(fast, name, torch.compile(getattr(fast, name), options={"freezing": True}))
    decoding = fast.start(example, capacity=4)
    for _ in range(3):
        decoding(example[:, :1])
    return fast
