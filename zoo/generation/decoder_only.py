"""A decoder-only model while it decodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoo.generation.past import Past

if TYPE_CHECKING:
    from zoo.gpt import CausalLM


class Decoding(Past):
    """A model in the middle of decoding; see `decoding.Decoder`.

    capacity: the most tokens of a row, its prompt and the padding of that among them.
    """

    def __init__(self, model: CausalLM, capacity: int, spare: int = 0) -> None:
        super().__init__(model.embedding.table.num_embeddings, model.new_caches(capacity, spare), rows=None)
        self.model, self.capacity = model, capacity

    @torch.no_grad()
    def __call__(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens (rows, n), after those of earlier calls -> logits (rows, vocab_size) for the next one.

        mask: (rows, n), False for the padding on the left of a prompt, which is the first call's; all else is as without it.
        """
        self.check(tokens, mask)
        self.begin(tokens, mask)
        return self.model.next_logits(tokens, self.past, self.capacity)

    @torch.no_grad()
    def all_logits(self, tokens: Tensor) -> Tensor:
        """As a call without mask, but logits (rows, n, vocab_size) for what follows each of the tokens."""
        self.check(tokens, None)
        self.begin(tokens, None)
        return self.model.logits(self.model.hidden(tokens, caches=self.past, length=self.capacity))
