"""Batches of parallel text: which examples share one, and the tensors that they become.

The batches of an epoch are a pure function of (lengths, max_tokens, seed, epoch): tensors of indices whose padded examples have
about as many tokens each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.data import DataError, epoch_order, generator_of
from tasks.data.tokenizer import TextTokenizer

WINDOW = 8192
"""So many examples, drawn at random, are sorted by length and cut into batches."""

Example = tuple[Any, Any]
"""Source and target ids, lists or arrays, without the tokens that begin and end a sentence."""


def lengths_of(examples: Sequence[Example]) -> Tensor:
    """(n, 2): the tokens of source and target, the one that ends a sentence among them, of examples in memory."""
    return torch.tensor([[len(ids) + 1 for ids in example] for example in examples]).reshape(-1, 2)


def batches(
    lengths: Tensor, max_tokens: int, seed: int, epoch: int, window: int = WINDOW, max_rows: int | None = None
) -> list[Tensor]:
    """Indices of the examples in each batch of an epoch: every example once, like lengths together, in random order.

    `lengths` are (n,) or (n, sides); on no side is rows times longest more than `max_tokens`, nor are there more rows than
    `max_rows`.
    Errors: `DataError` that names an example which is longer than `max_tokens` by itself.
    """
    lengths = lengths[:, None] if lengths.ndim == 1 else lengths
    if len(lengths) and int(lengths.max()) > max_tokens:
        worst = int(lengths.amax(1).argmax())
        raise DataError(f"example {worst} has {int(lengths[worst].max())} tokens, more than the {max_tokens} of a whole batch")
    found: list[Tensor] = []
    for part in epoch_order(len(lengths), seed, epoch).split(window):
        for side in range(lengths.shape[1]):  # the last side counts most; equally long ones stay in random order
            part = part[lengths[part, side].argsort(stable=True)]
        start, longest = 0, [0] * lengths.shape[1]
        for n, sides in enumerate(lengths[part].tolist()):
            grown = [max(pair) for pair in zip(longest, sides, strict=True)]
            rows = n + 1 - start
            if rows * max(grown) > max_tokens or (max_rows is not None and rows > max_rows):
                found.append(part[start:n])
                start, grown = n, sides
            longest = grown
        found.append(part[start:])
    found = [batch for batch in found if len(batch)]
    return [found[n] for n in torch.randperm(len(found), generator=generator_of("batches", seed, epoch)).tolist()]


def collate(examples: Sequence[Example], tokenizer: TextTokenizer) -> tuple[Tensor, Tensor, Tensor]:
    """Source (b, s) that ends in `eos`, target_in (b, t) that begins with `bos`, and target_out (b, t) that ends in `eos`.

    They are int64 and padded on the right; no examples give tensors of shape (0, 1).
    """
    bos, eos = tokenizer.bos, tokenizer.eos
    rows = [([*source, eos], [bos, *target], [*target, eos]) for source, target in examples]
    source, target_in, target_out = (padded(side, tokenizer.pad) for side in (zip(*rows, strict=True) if rows else ((), (), ())))
    return source, target_in, target_out


def padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    table = np.full((len(rows), max(map(len, rows), default=1)), pad, np.int64)
    for n, row in enumerate(rows):
        table[n, : len(row)] = row
    return torch.from_numpy(table)
