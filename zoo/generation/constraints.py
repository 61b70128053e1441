"""What a row's own past forbids it: tokens seen before, n-grams that would come twice, word sequences, an end that is too early.

In the order of Hugging Face's `generate`: repetition penalty, n-grams, sequences, tokens, the least length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.checks import require
from zoo.generation.sampling import Repetition

PADDING = -1
"""In the past of a row, where its prompt is padded: no token."""


class Constraints:
    """Logits or log-probabilities (rows, vocab_size), new tokens (rows, n) -> the same, -inf for tokens that may not come.

    repetition_penalty:   that of `Repetition`.
    no_repeat_ngram:      no n tokens one after the other come twice in a row, its prompt among them; None for no such rule.
    forbidden_sequences:  sequences of tokens of which none is ever completed; of one token, it never comes.
    forbidden:            tokens that never come.
    min_new_tokens, stop: the stop tokens do not come before there are as many new tokens.
    mask:                 (b, n), True for the real tokens of a prompt padded on the left; padding is no past.
    """

    def __init__(
        self,
        *,
        repetition_penalty: float = 1.0,
        no_repeat_ngram: int | None = None,
        forbidden_sequences: Sequence[Sequence[int]] = (),
        forbidden: Sequence[int] = (),
        min_new_tokens: int = 0,
        stop: Sequence[int] = (),
        mask: Tensor | None = None,
    ) -> None:
        require(no_repeat_ngram is None or no_repeat_ngram > 0, "no_repeat_ngram", no_repeat_ngram, "positive, or None")
        require(min_new_tokens >= 0, "min_new_tokens", min_new_tokens, "zero or more")
        sequences = [tuple(sequence) for sequence in forbidden_sequences]
        right = all(sequence and all(type(token) is int and token >= 0 for token in sequence) for sequence in sequences)
        require(right, "forbidden_sequences", list(forbidden_sequences), "sequences of tokens, none of them empty")
        self.repetition = Repetition(repetition_penalty, mask)
        self.ngram, self.sequences, self.forbidden = no_repeat_ngram, sequences, list(forbidden)
        self.min_new_tokens, self.stop, self.mask, self.new = min_new_tokens, list(stop), mask, 0
        self.past: Tensor | None = None

    def __call__(self, values: Tensor, tokens: Tensor) -> Tensor:
        values = self.repetition(values, tokens)
        if self.ngram is not None or self.sequences:
            if self.past is None:
                self.past = tokens if self.mask is None else tokens.where(self.mask, PADDING)
            else:
                self.past = torch.cat([self.past, tokens], 1)
            values = self.without_repeated(values, self.past)
            for sequence in self.sequences:
                values = self.without_sequence(values, self.past, sequence)
        never = self.forbidden + (self.stop if self.new < self.min_new_tokens else [])
        self.new += 1
        return values.index_fill(1, torch.tensor(never, device=values.device), float("-inf")) if never else values

    def without_repeated(self, values: Tensor, past: Tensor) -> Tensor:
        """No token that would end an n-gram which the row has had."""
        n = self.ngram
        if n is None or past.shape[1] < n:
            return values
        begun = past[:, past.shape[1] + 1 - n :]
        had = past.unfold(1, n, 1)
        again = (had[..., :-1] == begun[:, None]).all(-1) & (had != PADDING).all(-1)
        # of places that do not match, a column beyond the vocabulary is marked, and cut off
        ends = had[..., -1].where(again, values.shape[1])
        return self.forbid(values, ends)

    def without_sequence(self, values: Tensor, past: Tensor, sequence: Sequence[int]) -> Tensor:
        """No token that would complete the sequence."""
        *before, last = sequence
        require(last < values.shape[1], "forbidden_sequences", last, f"tokens below vocab_size, {values.shape[1]}")
        if len(before) > past.shape[1]:
            return values
        completes = (past[:, past.shape[1] - len(before) :] == torch.tensor(before, device=past.device)).all(1, keepdim=True)
        return self.forbid(values, torch.full_like(completes, last, dtype=torch.long).where(completes, values.shape[1]))

    @staticmethod
    def forbid(values: Tensor, tokens: Tensor) -> Tensor:
        """tokens (rows, m); those equal to vocab_size are none."""
        return F.pad(values, (0, 1)).scatter(1, tokens, float("-inf"))[:, :-1]

    def select(self, rows: Tensor) -> None:
        """As a decoder's `select`."""
        self.repetition.select(rows)
        self.past = None if self.past is None else self.past.index_select(0, rows)
