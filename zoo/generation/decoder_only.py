"""A decoder-only model while it decodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from layers.cache import Cache
from layers.checks import require
from zoo.generation.past import Past

if TYPE_CHECKING:
    from torch import nn

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

    @property
    def joinable(self) -> bool:
        """Whether it may `join` others, for which attentions with a window keep too little, and angles must need no length."""
        return all(type(cache) is Cache for cache in self.past) and not angles_need_length(self.model)

    def join(self, other: Decoding, capacity: int) -> None:
        """Take in the rows of another decoder of the same model, after its own, of up to `capacity` tokens from now on.

        Both have begun; the other one is used up. Errors: `ValueError` where they are not `joinable`.
        """
        needs = angles_need_length(self.model)
        require(not needs, "other", "a decoder whose positions depend on its capacity", "one whose positions do not")
        for own, others in zip(self.past, other.past, strict=True):
            own.join(others, capacity)
        self.rows, self.capacity = (self.rows or 0) + (other.rows or 0), capacity


def angles_need_length(model: nn.Module) -> bool:
    """Whether a rotary scaling turns by the length that texts may have: those of another capacity have other angles."""
    scalings = [getattr(module, "scaling", None) for module in model.modules()]
    return any(getattr(one, "needs_length", False) for one in scalings)
