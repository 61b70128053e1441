"""Windows of a long text: what a language model is trained on, and how a text is measured so that every token counts once.

A text is the token ids of its documents, each after one `eos`, which also stands where a document begins: the model learns
that after it anything may come.

    training     windows of `context` + 1 tokens one after the other, from another start in every round, in random order; packed
                 ones hold several documents, or parts, which `documents_of` tells apart
    measuring    overlapping windows of one document: `stride` new tokens each, after up to context - stride known ones
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from layers.checks import require
from tasks.data import epoch_order, generator_of
from tasks.data.batching import padded

IGNORED = -100
"""A label that does not count."""


def joined(documents: Sequence[Sequence[int]], eos: int) -> Tensor:
    """All documents as one row of ids, each after an `eos`, and one at the end."""
    parts = [np.asarray([eos, *ids], np.int32) for ids in documents]
    return torch.from_numpy(np.concatenate([*parts, np.asarray([eos], np.int32)]))


def documents_of(tokens: Tensor, eos: int) -> Tensor:
    """Windows (b, n) -> (b, n), the number of the document in its window that each token belongs to: one begins at each `eos`."""
    return (tokens == eos).cumsum(1)


class Windows:
    """Training windows over one row of ids; an epoch is `size` of them, and epochs go on where the last one ended.

    A round is all windows from one start, in random order; both are drawn from (seed, round).
    """

    def __init__(self, ids: Tensor, context: int, seed: int, size: int | None = None) -> None:
        require(context > 0, "context", context, "positive")
        self.ids, self.context, self.seed = ids, context, seed
        self.per_round = max((len(ids) - 1) // context, 1)
        self.size = self.per_round if size is None else size
        """Of an epoch."""

    def batches(self, epoch: int, batch_size: int) -> Sequence[Tensor]:
        """(b,): numbers of windows, counted over all rounds."""
        return torch.arange(epoch * self.size, (epoch + 1) * self.size).split(batch_size)

    def batch(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (b, context) and labels (b, context), what follows each token."""
        rows = [self.window(*divmod(n, self.per_round)) for n in numbers.tolist()]
        width = min(self.context, len(self.ids) - 1)
        tokens = torch.stack(rows).long() if rows else torch.zeros(0, width + 1, dtype=torch.long)
        return tokens[:, :-1], tokens[:, 1:]

    def window(self, turn: int, number: int) -> Tensor:
        order, shift = self.round(turn)
        start = int(order[number]) * self.context + shift
        return self.ids[start : start + self.context + 1]

    def round(self, turn: int) -> tuple[Tensor, int]:
        """The order of a round's windows, and where the first begins."""
        if getattr(self, "_turn", None) != turn:
            free = len(self.ids) - 1 - self.per_round * self.context
            shift = int(torch.randint(max(free, 0) + 1, (), generator=generator_of("windows", self.seed, turn)))
            self._turn, self._round = turn, (epoch_order(self.per_round, self.seed, turn), shift)
        return self._round


def strided(documents: Sequence[Sequence[int]], eos: int, context: int, stride: int) -> list[tuple[list[int], list[int]]]:
    """Tokens and labels of windows in which every token of every document, and the `eos` after it, is a label once.

    stride: labels of each window but a document's first, from 1 to context.
    """
    require(0 < stride <= context, "stride", stride, f"from 1 to the context, {context}")
    return [window for ids in documents for window in windows_of([eos, *ids, eos], context, stride)]


def windows_of(ids: Sequence[int], context: int, stride: int) -> Iterator[tuple[list[int], list[int]]]:
    counted = 0  # labels so far: ids[1 : counted + 1]
    while counted < len(ids) - 1:
        end = min(context if counted == 0 else counted + stride, len(ids) - 1)
        begin = max(0, end - context)
        labels = [IGNORED] * (counted - begin) + list(ids[counted + 1 : end + 1])
        yield list(ids[begin:end]), labels
        counted = end


def collate(windows: Sequence[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor]:
    """Tokens and labels (b, n), padded on the right, where labels do not count."""
    return padded([tokens for tokens, _ in windows], pad), padded([labels for _, labels in windows], IGNORED)
