"""Less memory for more time: what some modules compute is not kept for the backward pass, but computed there once more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks(model: nn.Module) -> list[nn.Module]:
    """Entries of the model's lists, such as its stages, or the blocks of encoder and decoder."""
    return [block for child in model.children() if isinstance(child, nn.ModuleList) for block in child]


@contextlib.contextmanager
def recomputing(modules: Iterable[nn.Module]) -> Iterator[None]:
    """While it lasts, each of these modules keeps its inputs only (Chen et al., 2016, arXiv 1604.06174).

    Dropout draws the same masks again, and running statistics move once: `torch.utils.checkpoint` alone would move them twice.
    """
    modules = list(modules)

    def contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return contextlib.nullcontext(), buffers_kept(module)

    for module in modules:
        options = {"use_reentrant": False, "context_fn": partial(contexts, module)}
        module.forward = partial(checkpoint, module.forward, **options)  # of this module alone, before its class's
    try:
        yield
    finally:
        for module in modules:
            del module.forward


@contextlib.contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    before = [buffer.clone() for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(module.buffers(), before, strict=True):
                buffer.copy_(value)
