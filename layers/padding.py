"""A padded batch without its padding: what works token by token then computes nothing for padding.

    real = RealTokens(mask)                 # (b, n), True for real tokens, of which there are t
    x = real.take(x)                        # (b, n, dim) -> (1, t, dim), row after row
    x = block(x, real=real)                 # linear layers and norms see t tokens; attention alone puts them back into rows
    x = real.put(x)                         # (1, t, dim) -> (b, n, dim), zeros for padding

Computing so is known as unpadding: Zeng et al., "Boosting Distributed Training Performance of the Unpadded BERT Model", 2022
(arXiv 2208.08124).
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.checks import is_traced, require, require_axes


class RealTokens:
    """Where the real tokens of a padded batch stand. mask: boolean (b, n), True for real tokens, on any side.

    Their number depends on values: a GPU is waited for, and neither compilers nor `torch.func` follow.
    """

    def __init__(self, mask: Tensor) -> None:
        require_axes(mask, "mask", "batch n")
        require(mask.dtype == torch.bool, "mask", mask.dtype, "boolean, True for real tokens")
        self.mask, self.index = mask, mask.flatten().nonzero()[:, 0]

    def take(self, x: Tensor) -> Tensor:
        """(b, n, ...) -> (1, t, ...): the real ones, row after row."""
        batch, n = self.mask.shape
        require(x.shape[:2] == (batch, n), "x", tuple(x.shape), f"of the mask's batch {batch} and n {n} first")
        return x.flatten(0, 1).index_select(0, self.index)[None]

    def put(self, x: Tensor) -> Tensor:
        """(1, t, ...) -> (b, n, ...): each at its place, zeros elsewhere."""
        require(
            x.shape[:2] == (1, self.index.shape[0]), "x", tuple(x.shape), f"of 1 and the {self.index.shape[0]} real tokens first"
        )
        rows = x.new_zeros(self.mask.numel(), *x.shape[2:])
        return rows.index_copy(0, self.index, x[0]).unflatten(0, self.mask.shape)


def real_tokens(mask: Tensor) -> RealTokens | None:
    """None where nothing is padded, or the number of real tokens may not be asked for: while somebody traces the call."""
    recorded = is_traced() or (mask.is_cuda and torch.cuda.is_current_stream_capturing())
    return None if recorded or mask.is_meta or bool(mask.all()) else RealTokens(mask)
