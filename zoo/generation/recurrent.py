"""Recurrent models while they decode: of each row's past there is a state, which does not grow and does not go back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from layers.alignment import Remembered
from layers.checks import require
from zoo.generation.past import Past

if TYPE_CHECKING:
    from layers.cells import State


class RecurrentDecoding(Past):
    """A recurrent model in the middle of decoding; see `decoding.Decoder`.

    model:    has ``next_logits(tokens, state, mask)``, which gives logits and the next state.
    state:    tensors (rows, ...) of the past; None for the model's own beginning.
    capacity: the most tokens of a row, its prompt and the padding of that among them.
    """

    def __init__(self, model: Any, capacity: int, state: State | None = None, rows: int | None = None) -> None:
        super().__init__(model.embedding.table.num_embeddings, (), rows)
        self.model, self.capacity, self.state, self.filled = model, capacity, state, 0
        self.gaps: Tensor | None = None
        """(rows,), the padding before each row's first token; None where there is none."""

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return self.filled

    def check(self, tokens: Tensor, mask: Tensor | None) -> None:
        super().check(tokens, mask)
        if self.filled + tokens.shape[1] > self.capacity:
            raise ValueError(f"decoder has a capacity of {self.capacity}, got {self.filled} + {tokens.shape[1]} tokens")

    @torch.no_grad()
    def __call__(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens (rows, n), after those of earlier calls -> logits (rows, vocab_size) for the next one.

        mask: (rows, n), False for the padding on the left of a prompt, which is the first call's; all else is as without it.
        """
        self.check(tokens, mask)
        self.begin(tokens, mask)
        self.gaps = self.gaps if mask is None else (~mask).sum(1)
        logits, self.state = self.next_logits(tokens, mask)
        self.filled += tokens.shape[1]
        return logits

    def next_logits(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, State]:
        return self.model.next_logits(tokens, self.state, mask)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may be taken several times."""
        super().select(rows)
        self.state = None if self.state is None else tuple(part.index_select(0, rows) for part in self.state)
        self.gaps = None if self.gaps is None else self.gaps.index_select(0, rows)

    def truncate(self, length: int | Tensor) -> None:
        """Errors: `ValueError` for any length but the present one: what a state was before is not kept."""
        same = isinstance(length, int) and length == self.filled
        require(same, "length", length, f"{self.filled}, all there is: the state of a recurrent model does not go back")

    joinable: ClassVar[bool] = True
    """Whether it may `join` others."""

    def join(self, other: RecurrentDecoding, capacity: int) -> None:
        """Take in the rows of another decoder of the same model, after its own, of up to `capacity` tokens from now on.

        Both have begun; the other one is used up. Padding before all rows no longer counts. Errors: `ValueError`.
        """
        begun = self.joinable and other.joinable and self.state is not None and other.state is not None
        require(begun, "other", type(other).__name__, "a RecurrentDecoding that has begun, to one that has")
        lengths = torch.cat([self.lengths(), other.lengths()])
        filled = int(lengths.max()) if len(lengths) else 0
        require(capacity >= filled, "capacity", capacity, f"{filled} at least, which are filled")
        self.state = tuple(torch.cat(parts) for parts in zip(self.state, other.state, strict=True))  # type: ignore
        self.rows, self.filled, self.capacity = (self.rows or 0) + (other.rows or 0), filled, capacity
        self.gaps = filled - lengths

    def lengths(self) -> Tensor:
        """(rows,): tokens of each, once it has begun."""
        whole = torch.full((self.rows or 0,), self.filled, device=self.state[0].device if self.state else None)
        return whole if self.gaps is None else whole - self.gaps.to(whole.device)


class Seq2SeqDecoding(RecurrentDecoding):
    """As `RecurrentDecoding`, with the memory that an encoder left, which is not joined."""

    joinable = False

    def __init__(self, model: Any, capacity: int, state: State, memory: Remembered) -> None:
        super().__init__(model, capacity, state, memory.memory.shape[0])
        self.memory = memory
        self.sentences = torch.arange(memory.memory.shape[0], device=memory.memory.device)  # the source of each row

    def next_logits(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, State]:
        return self.model.next_logits(tokens, self.state, mask, self.memory)

    def select(self, rows: Tensor) -> None:
        """As `RecurrentDecoding`. What belongs to the source moves only where rows change their source."""
        super().select(rows)
        before, self.sentences = self.sentences, self.sentences[rows]
        if not torch.equal(before, self.sentences):
            memory, keys, mask = self.memory
            self.memory = Remembered(memory[rows], keys[rows], None if mask is None else mask[rows])
