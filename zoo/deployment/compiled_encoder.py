"""A BERT whose forward is a program of the real tokens alone: padding is computed within attention only, as in eager torch.

Compiled ahead of time, for any number of rows of any length; see `zoo.deployment.inductor`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from layers import masks
from layers.checks import require, require_axes, require_integers
from layers.embedding import require_known
from layers.padding import RealTokens
from layers.positions import LearnedPositions
from zoo.bert import Bert
from zoo.deployment.inductor import Program, compiled
from zoo.deployment.optimize import Constant, copied
from zoo.heads import AnswerHead, MaskedHead, TokenHead


def optimize_bert(model: Bert, example: Tensor, dtype: torch.dtype) -> OptimizedBert:
    """What `zoo.optimize` returns of a `Bert`. example: tokens (b, n), of the size that the compiler plans for."""
    require_axes(example, "example", "batch length")
    require(example.numel() > 0, "example", tuple(example.shape), "of one token at least")
    require_known(example, "example", model.embedding.table.num_embeddings)
    model.check(example, None, None, None)
    fast: Bert = copied(model, {}).eval().requires_grad_(False).to(dtype)
    with torch.no_grad():
        _, structure = tree_flatten(fast(example[:1, :1]))
        rows = example.repeat(2, 1) if len(example) == 1 else example
        if rows.shape[1] == 1:
            rows = rows.repeat(1, 2)
        mask = torch.ones_like(rows, dtype=torch.bool)
        mask[0, -1] = False  # so that the number of real tokens is a size of its own
        given = Given(fast, rows, mask, None, torch.zeros_like(rows))
        return OptimizedBert(fast, compiled(Reader(fast), *given.tensors), structure)


class OptimizedBert(Constant):
    """A `Bert` for inference that calls a program. Its weights cannot be reached, so that all parts stay of one.

    structure: of what the model puts out.
    """

    def __init__(self, model: Bert, program: Program, structure: TreeSpec) -> None:
        weight = next(model.parameters())
        super().__init__((model, program, structure), weight.dtype, weight.device)
        self.config = copy.deepcopy(model.config)
        self.place = nn.Parameter(weight.new_empty(0), requires_grad=False)  # tells others the device and dtype

    def forward(
        self, tokens: Tensor, mask: Tensor | None = None, types: Tensor | None = None, positions: Tensor | None = None
    ) -> Any:
        """As `Bert`. A single real token, and positions of a model whose attentions have their own, go through the model."""
        model, program, structure = self.programs
        with torch.no_grad():
            model.check(tokens, mask, types, positions)
            elsewhere = tokens.device != self.device or (positions is not None and model.positions is None)
            if elsewhere or (tokens.numel() if mask is None else int(mask.sum())) < 2:
                return model(tokens, mask, types, positions)
            given = Given(model, tokens, mask, types, positions)
            found = tree_unflatten(program(given.tensors), structure)
            return tree_map(lambda x: given.cut(x, by_token(model.head)), found)

    def encode(
        self, tokens: Tensor, mask: Tensor | None = None, types: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """As `Bert.encode`, and faster of a model without head only."""
        model = self.programs[0]
        with torch.no_grad():
            return (self if model.head is None else model.encode)(tokens, mask, types, positions)


def by_token(head: nn.Module | None) -> bool:
    """Whether the head looks at each token alone, so that it need not see padding either."""
    return head is None or isinstance(head, TokenHead | AnswerHead | MaskedHead)


class Given:
    """What the program takes of a call.

    A single row gets an empty one beside it, and a single place one of padding, for compilers specialise on 1.
    Errors: `ValueError` for numbers that the model's tables do not have, on a GPU too: a program would end the process.
    """

    def __init__(self, model: Bert, tokens: Tensor, mask: Tensor | None, types: Tensor | None, positions: Tensor | None) -> None:
        self.rows, self.length = tokens.shape
        mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        positions = masks.padded_positions(mask) if positions is None else positions.expand(mask.shape)
        require_integers(positions, "positions")
        parts = [tokens, positions, *([] if model.types is None else [torch.zeros_like(tokens) if types is None else types])]
        missing = (0, int(self.length == 1), 0, int(self.rows == 1))
        self.real = RealTokens(F.pad(mask, missing).contiguous())  # a program does not look at strides
        parts = [self.real.take(F.pad(x, missing))[0].long() for x in parts]
        require_known(parts[0], "tokens", model.embedding.table.num_embeddings)
        if model.types is not None:
            require_known(parts[2], "types", model.types.table.num_embeddings)
        if isinstance(model.positions, LearnedPositions):
            low, high = (int(x) for x in parts[1].aminmax())
            most = model.positions.max_positions
            if low + model.positions.offset < 0 or high >= most:
                raise ValueError(f"positions must be from 0 to {most - 1}, got {low} to {high}")
        self.tensors = [self.real.index, self.real.mask, *parts]

    def cut(self, x: Tensor, by_token: bool) -> Tensor:
        """Outputs without those of a row and place that were added."""
        return x[: self.rows, : self.length] if by_token else x[: self.rows]


class Reader(nn.Module):
    """The real tokens (t,) of rows, their places and the mask (b, n) -> what the model puts out, zeros at padding."""

    def __init__(self, model: Bert) -> None:
        super().__init__()
        self.model = model

    def forward(self, index: Tensor, mask: Tensor, tokens: Tensor, positions: Tensor, types: Tensor | None = None) -> Any:
        model, real = self.model, Known(mask, index)
        x = model.embed(tokens[None], None if types is None else types[None], positions[None])
        for block in model.encoder:
            x = block(x, mask=None, real=real)
        if model.head is None:
            return real.put(x)
        if by_token(model.head):
            return tree_map(real.put, model.head(x, None, model.embedding))
        return model.head(real.put(x), mask, model.embedding)


class Known(RealTokens):
    """Real tokens whose places are given, for a program cannot ask how many there are."""

    def __init__(self, mask: Tensor, index: Tensor) -> None:
        self.mask, self.index = mask, index
