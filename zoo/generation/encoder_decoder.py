"""An encoder-decoder while it decodes: the memory that its encoder left, and the past of each row of the target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from layers.cache import Cache, CrossCache
from layers.checks import require, require_axes
from layers.embedding import require_indices, require_known
from zoo.generation.decoding import require_left_padding

if TYPE_CHECKING:
    from zoo.transformer import Transformer

Caches = Sequence[tuple[Cache, CrossCache]]
"""Of each decoder block: its own past, and keys and values of the memory."""


class Decoding:
    """An encoder-decoder in the middle of decoding; see `decoding.Decoder`."""

    cache: type[Cache] = Cache

    def __init__(self, model: Transformer, memory: Tensor, source_mask: Tensor | None, capacity: int) -> None:
        self.model, self.memory, self.source_mask = model, memory, source_mask
        self.caches = [(self.cache(capacity), CrossCache()) for _ in model.decoder]
        self.sentences = torch.arange(memory.shape[0], device=memory.device)  # the source of each row
        self.rows, self.begun = memory.shape[0], False

    @torch.no_grad()
    def __call__(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens (rows, n), after those of earlier calls -> logits (rows, vocab_size) for the next one.

        mask: (rows, n), False for the padding on the left of a prompt, which is the first call's; all else is as without it.
        """
        self.check(tokens, mask)
        self.begin(mask)
        return self.model.next_logits(tokens, self.memory, self.source_mask, self.caches)

    def check(self, tokens: Tensor, mask: Tensor | None) -> None:
        """The errors of a call, all of them before anything changes: `ValueError` that names the argument."""
        require_axes(tokens, "tokens", "batch target_length", batch=self.rows)
        require(tokens.shape[1] > 0, "tokens", tuple(tokens.shape), "of one token a row at least")
        require_indices(tokens, "tokens")
        require(mask is None or not self.begun, "mask", "a mask", "None after the first call, which has the prompt")
        if mask is not None:
            require_left_padding(mask, "mask", tokens)
        if not torch.compiler.is_compiling():
            if tokens.is_cpu:  # a GPU is not worth waiting for
                require_known(tokens, "tokens", self.model.embedding.table.num_embeddings)
            for own, _ in self.caches[:1]:
                own.check_room(tokens.shape[1])

    def begin(self, mask: Tensor | None) -> None:
        """Tells the caches where each row starts."""
        self.begun = True
        if mask is not None and not bool(mask.all()):
            start = (~mask).sum(1)
            for own, _ in self.caches:
                own.start = start

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order. What belongs to the source moves only where rows change their source."""
        self.check_rows(rows)
        for own, _ in self.caches:
            own.select(rows)
        before, self.sentences = self.sentences, self.sentences[rows]
        if not torch.equal(before, self.sentences):
            self.memory = self.memory[rows]
            self.source_mask = None if self.source_mask is None else self.source_mask[rows]
            for _, crossed in self.caches:
                crossed.select(rows)
        self.rows = len(rows)

    def check_rows(self, rows: Tensor) -> None:
        require_axes(rows, "rows", "rows")
        require_indices(rows, "rows")
        if rows.numel() > 0 and rows.is_cpu:
            low, high = (int(x) for x in rows.aminmax())
            require(low >= 0 and high < self.rows, "rows", low if low < 0 else high, f"from 0 to {self.rows - 1}")
