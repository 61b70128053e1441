"""Attention masks: boolean, broadcastable to (b, h, q, k), and True means "may attend".

Masks combine with `&`: ``masks.causal(n) & masks.padding(lengths, n)``. Queries are aligned with the last keys, so a mask for
one new query over a cache of n keys is the last row of the mask for n queries.

The converters at the foot name both meanings: an *allowed* mask is ours, *forbidden* is `nn.MultiheadAttention`'s (True hides),
*additive* is 0 and -inf, *ones* is the 1 and 0 of Hugging Face's tokenizers, *lengths* counts the real tokens of each row.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from layers.checks import require, require_axes

AXES = ("batch", "heads", "queries", "keys")
"""Of a mask, whose first ones may be missing."""


def up_to(at_query: Tensor, at_key: Tensor) -> Tensor:
    """Places (q,), (k,) in the sequence -> (q, k): True for keys that do not come after the query."""
    return at_key <= at_query[:, None]


def near(at_query: Tensor, at_key: Tensor, size: int) -> Tensor:
    """Places (q,), (k,) in the sequence -> (q, k): True where they are less than `size` apart."""
    return (at_query[:, None] - at_key).abs() < size


def places(queries: int, keys: int | None, device: torch.device | None) -> tuple[Tensor, Tensor]:
    """Places (q,) of the queries and (k,) of the keys; the last query is at the last key."""
    keys = queries if keys is None else keys
    return torch.arange(keys - queries, keys, device=device), torch.arange(keys, device=device)


def causal(queries: int, keys: int | None = None, device: torch.device | None = None) -> Tensor:
    """(q, k): every query attends to the keys up to its own place."""
    return up_to(*places(queries, keys, device))


def window(queries: int, size: int, keys: int | None = None, device: torch.device | None = None) -> Tensor:
    """(q, k): places less than `size` apart, on both sides; with `causal`, a query's own and the `size` - 1 before it."""
    require(size > 0, "size", size, "positive")
    return near(*places(queries, keys, device), size)


def for_keys(valid: Tensor) -> Tensor:
    """(b, k), True for real tokens -> (b, 1, 1, k): no query attends to the others."""
    require_axes(valid, "valid", "batch keys")
    return rearrange(valid, "b k -> b 1 1 k")


def padding(lengths: Tensor, size: int, side: str = "right") -> Tensor:
    """lengths (b,) -> (b, 1, 1, size): hides what pads the rows on that side."""
    return for_keys(allowed_from_lengths(lengths, size, side))


def packed(documents: Tensor) -> Tensor:
    """(b, n), the number of the document that each token belongs to -> (b, 1, n, n): each attends within its own."""
    require_axes(documents, "documents", "batch tokens")
    return rearrange(documents, "b q -> b 1 q 1") == rearrange(documents, "b k -> b 1 1 k")


def packed_positions(documents: Tensor) -> Tensor:
    """(b, n), documents one after the other -> positions (b, n): each token's place in its own document, from 0."""
    require_axes(documents, "documents", "batch tokens")
    at = torch.arange(documents.shape[1], device=documents.device)
    begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
    return at - at.where(begins, 0).cummax(1).values


def padded_positions(valid: Tensor) -> Tensor:
    """(b, n), True for real tokens -> positions (b, n): how many real tokens stand before each; 0 for padding on the left."""
    require_axes(valid, "valid", "batch tokens")
    require(valid.dtype == torch.bool, "valid", valid.dtype, "boolean")
    return (valid.cumsum(1) - 1).clamp(min=0)


def require_fits(tensor: Tensor, name: str, **sizes: int) -> None:
    """`ValueError` unless the tensor broadcasts to (batch, heads, queries, keys); an axis of no given size takes any."""
    names = AXES[len(AXES) - tensor.ndim :]
    for axis, n in zip(names, tensor.shape, strict=True):
        if n not in (1, sizes.get(axis, n)):
            expected = tuple(sizes.get(x, x) for x in names)
            raise ValueError(
                f"{name} must be broadcastable to {expected}, got {tuple(tensor.shape)}: {axis} must be 1 or {sizes[axis]} "
                f"(axes {' '.join(names)})"
            )


# ---------------------------------------------------------------------------------------------------------- converters


def allowed_from_forbidden(forbidden: Tensor) -> Tensor:
    """`nn.MultiheadAttention`'s boolean masks, where True hides, to ours. Axes stay: see `for_keys` for (b, k)."""
    require(forbidden.dtype == torch.bool, "forbidden", forbidden.dtype, "boolean")
    return ~forbidden


def forbidden_from_allowed(allowed: Tensor) -> Tensor:
    """Ours to `nn.MultiheadAttention`'s boolean masks, where True hides."""
    require(allowed.dtype == torch.bool, "allowed", allowed.dtype, "boolean")
    return ~allowed


def allowed_from_additive(additive: Tensor) -> Tensor:
    """A float mask of 0 and -inf, or the dtype's lowest number, to ours; `ValueError` for other values, which are a bias."""
    lowest = torch.finfo(additive.dtype).min
    hidden = additive <= lowest
    if not (hidden | (additive == 0)).all():
        raise ValueError("additive must hold 0 and -inf (or the dtype's lowest number) only: pass other values as a bias")
    return ~hidden


def additive_from_allowed(allowed: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Ours to a float mask of 0 and -inf."""
    require(allowed.dtype == torch.bool, "allowed", allowed.dtype, "boolean")
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, float("-inf"))


def allowed_from_ones(ones: Tensor) -> Tensor:
    """The 1 and 0 that Hugging Face calls `attention_mask` to ours."""
    if ((ones != 0) & (ones != 1)).any():
        raise ValueError("ones must hold 1 for real tokens and 0 for padding only")
    return ones == 1


def ones_from_allowed(allowed: Tensor) -> Tensor:
    """Ours to the 1 and 0 (int64) that Hugging Face calls `attention_mask`."""
    require(allowed.dtype == torch.bool, "allowed", allowed.dtype, "boolean")
    return allowed.long()


def allowed_from_lengths(lengths: Tensor, size: int, side: str = "right") -> Tensor:
    """lengths (b,) -> (b, size), True for the real tokens of rows that are padded on that side."""
    require(side in ("left", "right"), "side", side, "'left' or 'right'")
    require_axes(lengths, "lengths", "batch")
    place = torch.arange(size, device=lengths.device)
    return (place < lengths[:, None]) if side == "right" else (place >= size - lengths[:, None])


def lengths_from_allowed(allowed: Tensor) -> Tensor:
    """(b, k), True for real tokens -> how many there are in each row (b,)."""
    require(allowed.dtype == torch.bool, "allowed", allowed.dtype, "boolean")
    return allowed.sum(-1)
