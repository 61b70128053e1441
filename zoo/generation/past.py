"""What models remember while they decode, and the checks that all of them share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from layers.cache import Cache
from layers.checks import require, require_axes
from layers.embedding import require_indices, require_known
from zoo.generation.decoding import require_left_padding


class Past:
    """Abstract: the past of each row of a batch, in caches that are all filled alike; see `decoding.Decoder`.

    caches: one a block, for the self-attentions.
    rows:   of the batch; the first call tells, where it is None.
    """

    def __init__(self, vocab_size: int, caches: Sequence[Cache], rows: int | None) -> None:
        self.vocab_size, self.past, self.rows, self.begun = vocab_size, caches, rows, False

    @property
    def length(self) -> int:
        """Slots that are filled: tokens of the longest row."""
        return int(self.past[0].length) if self.past else 0

    def check(self, tokens: Tensor, mask: Tensor | None) -> None:
        """The errors of a call, all of them before anything changes: `ValueError` that names the argument."""
        known = {} if self.rows is None else {"batch": self.rows}
        require_axes(tokens, "tokens", "batch length", **known)
        require(tokens.shape[1] > 0, "tokens", tuple(tokens.shape), "of one token a row at least")
        require_indices(tokens, "tokens")
        require(mask is None or not self.begun, "mask", "a mask", "None after the first call, which has the prompt")
        if mask is not None:
            require_left_padding(mask, "mask", tokens)
        if not torch.compiler.is_compiling():
            if tokens.is_cpu:  # a GPU is not worth waiting for
                require_known(tokens, "tokens", self.vocab_size)
            for cache in self.past[:1]:
                cache.check_room(tokens.shape[1])

    def begin(self, tokens: Tensor, mask: Tensor | None) -> None:
        """Tells the caches where each row starts."""
        self.begun, self.rows = True, tokens.shape[0] if self.rows is None else self.rows
        if mask is not None and not bool(mask.all()):
            for cache in self.past:
                cache.start = (~mask).sum(1)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may be taken several times."""
        self.check_rows(rows)
        for cache in self.past:
            cache.select(rows)
        self.rows = len(rows)

    def truncate(self, length: int | Tensor) -> None:
        """Go back to a length, of all rows or (rows,) of each, as `Cache.truncate` says."""
        for cache in self.past:
            cache.truncate(length)

    def check_rows(self, rows: Tensor) -> None:
        require_axes(rows, "rows", "rows")
        require_indices(rows, "rows")
        if rows.numel() > 0 and rows.is_cpu and self.rows is not None:
            low, high = (int(x) for x in rows.aminmax())
            require(low >= 0 and high < self.rows, "rows", low if low < 0 else high, f"from 0 to {self.rows - 1}")
