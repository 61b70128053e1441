"""An encoder-decoder while it decodes: the memory that its encoder left, and the past of each row of the target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from layers.cache import Cache, CrossCache
from zoo.generation.past import Past

if TYPE_CHECKING:
    from zoo.transformer import Transformer

Caches = Sequence[tuple[Cache, CrossCache]]
"""Of each decoder block: its own past, and keys and values of the memory."""


class Decoding(Past):
    """An encoder-decoder in the middle of decoding; see `decoding.Decoder`."""

    cache: type[Cache] = Cache

    def __init__(self, model: Transformer, memory: Tensor, source_mask: Tensor | None, capacity: int) -> None:
        self.caches = [(self.cache(capacity), CrossCache()) for _ in model.decoder]
        super().__init__(model.embedding.table.num_embeddings, [own for own, _ in self.caches], memory.shape[0])
        self.model, self.memory, self.source_mask = model, memory, source_mask
        self.sentences = torch.arange(memory.shape[0], device=memory.device)  # the source of each row

    @torch.no_grad()
    def __call__(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens (rows, n), after those of earlier calls -> logits (rows, vocab_size) for the next one.

        mask: (rows, n), False for the padding on the left of a prompt, which is the first call's; all else is as without it.
        """
        self.check(tokens, mask)
        self.begin(tokens, mask)
        return self.model.next_logits(tokens, self.memory, self.source_mask, self.caches)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order. What belongs to the source moves only where rows change their source."""
        super().select(rows)
        before, self.sentences = self.sentences, self.sentences[rows]
        if not torch.equal(before, self.sentences):
            self.memory = self.memory[rows]
            self.source_mask = None if self.source_mask is None else self.source_mask[rows]
            for _, crossed in self.caches:
                crossed.select(rows)
