"""Where a token stands: added to its embedding, turned into queries and keys, or added to the scores of attention.

    Sinusoidal, LearnedPositions    positions (..., n) -> (..., n, dim)                     added to embeddings
    Rotary                          x (b, h, n, dim), positions (n,) or (b, n) -> x         queries and keys, turned
    ALiBi, RelativeBias             query positions (q,), key positions (k,) -> (h, q, k)   added to scores
                                    or (b, q), (b, k) -> (b, h, q, k)

Positions are integers, and are given, never counted here: decoding from a cache, left padding and packed sequences differ by the
positions that the caller passes. Sines, slopes and buckets are computed anew in every call, from integers and Python's numbers,
angles in float64, and only the result is rounded. So a model in bfloat16, or built on the meta device, has the frequencies of one
in float64, and no call depends on an earlier one. (Apple's GPUs have no float64.)

Axes: b batch, h heads, n positions, q query positions, k key positions.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from layers.checks import require, require_axes, require_integers
from layers.rotary_scaling import Scaling


class Sinusoidal(nn.Module):
    """``out[p, 2i] = sin(a), out[p, 2i + 1] = cos(a), a = p * 10000^(-2i / dim)``: positions (..., n) -> (..., n, dim).

    interleaved: True is the paper's layout, above; False has all sines first, then all cosines, as in Marian. An odd dim has
                 one sine more than cosines.
    dtype:       of the result, best that of the embeddings which it is added to; torch's default dtype unless given.
    Vaswani et al., "Attention Is All You Need", 2017 (arXiv 1706.03762). Proven against the formula in Python's floats, and
    `MarianSinusoidalPositionalEmbedding` of transformers, a float32 table of fixed length. The code of tensor2tensor and fairseq
    has sines first too, but other frequencies, 10000^(-i / (dim / 2 - 1)), and a zero as last feature of an odd dim.
    """

    def __init__(self, dim: int, interleaved: bool = True) -> None:
        super().__init__()
        require(dim > 0, "dim", dim, "positive")
        self.dim, self.interleaved = dim, interleaved

    def forward(self, positions: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        require_integers(positions, "positions")
        angles = positions.unsqueeze(-1) * frequencies(self.dim, 10000.0, positions.device)
        sines, cosines = angles.sin(), angles.cos()
        if self.interleaved:
            out = torch.stack([sines, cosines], -1).flatten(-2)[..., : self.dim]
        else:
            out = torch.cat([sines, cosines[..., : self.dim // 2]], -1)
        return out.to(dtype or torch.get_default_dtype())


class LearnedPositions(nn.Module):
    """``out[p] = table[p + offset]``: positions (..., n) of 0 .. max_positions - 1 -> (..., n, dim).

    offset: rows of the table before that of position 0; 2 in BART, left over from fairseq's padding.
    dtype:  of the result, the table's unless given.
    Errors: on the CPU `ValueError` for a position outside of the table. Compiled calls, and values on a GPU, which are not worth
            waiting for, run into torch's own bounds check.
    Gehring et al., "Convolutional Sequence to Sequence Learning", 2017 (arXiv 1705.03122). Starts normal with standard deviation
    0.02, as GPT-2, BERT and BART do. Proven against `nn.Embedding` and `BartLearnedPositionalEmbedding` of transformers.
    """

    def __init__(self, max_positions: int, dim: int, offset: int = 0) -> None:
        super().__init__()
        require(max_positions > 0, "max_positions", max_positions, "positive")
        require(dim > 0, "dim", dim, "positive")
        require(offset >= 0, "offset", offset, "zero or more")
        self.max_positions, self.offset = max_positions, offset
        self.table = nn.Embedding(max_positions + offset, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, positions: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        require_integers(positions, "positions")
        try:
            return self.table(positions + self.offset).to(dtype or self.table.weight.dtype)
        except IndexError as error:
            found = f"{int(positions.min())} to {int(positions.max())}"
            raise ValueError(f"positions must be from 0 to {self.max_positions - 1}, got {found}") from error


class Angles(NamedTuple):
    """Cosines and sines of rotary positions, (n, f) or (b, n, f): what `Rotary` computes of them once for many calls."""

    cos: Tensor
    sin: Tensor


class Rotary(nn.Module):
    """``(x1, x2) -> (x1 cos a - x2 sin a, x2 cos a + x1 sin a)``, ``a = p * base^(-2i / rotary_dim)`` for pair i of the features.

    x (b, h, n, dim), positions (n,) or (b, n) -> x turned, in its own dtype. Scores of turned queries and keys depend on
    differences of positions alone.

    interleaved: neighbours (0, 1), (2, 3), ... are pairs, as in the paper, GPT-J and Meta's Llama files; False pairs the halves
                 (0, d/2), (1, d/2 + 1), ..., as in GPT-NeoX and transformers' Llama. Rows of query and key weights go from one to
                 the other by "(h f pair) i -> (h pair f) i". A model with the wrong pairs runs, and is wrong.
    rotary_dim:  this many features at the front are turned, the rest left alone; all unless given. 64 of 256 in GPT-J.
    scaling:     for longer texts, such as `Llama3Scaling()` of `layers.rotary_scaling`.
    Su et al., "RoFormer", 2021 (arXiv 2104.09864). Proven against Llama, GPT-NeoX and GPT-J of transformers. Those keep
    frequencies or a table in buffers, and round sines to the dtype of x before they multiply; here half precision multiplies in
    float32, and position 100,000 is as exact as position 1. The price: every call computes n * rotary_dim / 2 sines and cosines,
    unless it is given the `angles`, which a model computes once for all of its layers.
    """

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        interleaved: bool = False,
        rotary_dim: int | None = None,
        scaling: Scaling | None = None,
    ) -> None:
        super().__init__()
        require(dim > 0 and (dim % 2 == 0 or rotary_dim is not None), "dim", dim, "positive, and even unless rotary_dim is given")
        require(base > 0, "base", base, "positive")
        rotary_dim = dim if rotary_dim is None else rotary_dim
        require(0 < rotary_dim <= dim and rotary_dim % 2 == 0, "rotary_dim", rotary_dim, f"even, from 2 to dim = {dim}")
        self.dim, self.base, self.interleaved, self.rotary_dim, self.scaling = dim, base, interleaved, rotary_dim, scaling

    def forward(self, x: Tensor, positions: Tensor | Angles) -> Tensor:
        """positions: integers, or the `angles` of them."""
        require_axes(x, "x", "batch heads length dim", dim=self.dim)
        angles = self.angles(positions, x.dtype) if isinstance(positions, Tensor) else positions
        axes = "length features" if angles.cos.ndim == 2 else "batch length features"
        require_axes(angles.cos, "positions", axes, batch=x.shape[0], length=x.shape[2], features=self.rotary_dim // 2)
        precise = torch.promote_types(x.dtype, torch.float32)
        cos, sin = (rearrange(table, "... n f -> ... 1 n f").to(precise) for table in angles)
        pattern = "... (f pair) -> pair ... f" if self.interleaved else "... (pair f) -> pair ... f"
        first, second = rearrange(x[..., : self.rotary_dim].to(precise), pattern, pair=2)
        turned = torch.stack([first * cos - second * sin, second * cos + first * sin], -1 if self.interleaved else -2)
        return torch.cat([turned.flatten(-2).to(x.dtype), x[..., self.rotary_dim :]], -1)

    def angles(self, positions: Tensor, dtype: torch.dtype, length: Tensor | int | None = None) -> Angles:
        """Positions (n,) or (b, n) -> cosines and sines, in float32 for half precision, for any number of calls.

        length: of the whole text in tokens, for scalings that depend on it; unless given, the last position and one.
        """
        require_axes(positions, "positions", "length" if positions.ndim == 1 else "batch length")
        require_integers(positions, "positions")
        speeds, factor = frequencies(self.rotary_dim, self.base, positions.device), 1.0
        if self.scaling is not None:
            if length is None and self.scaling.needs_length:
                length = torch.cat([positions.flatten(), positions.new_zeros(1)]).max() + 1  # of no positions too
            speeds, factor = self.scaling(speeds, self.base, 0 if length is None else length), self.scaling.attention_factor
        turns = rearrange(positions, "... n -> ... n 1") * speeds
        precise = torch.promote_types(dtype, torch.float32)
        return Angles((turns.cos() * factor).to(precise), (turns.sin() * factor).to(precise))


class ALiBi(nn.Module):
    """``bias[h, q, k] = -2^(-8 (h + 1) / heads) * |p_q - p_k|``: query positions (q,), key positions (k,) -> (heads, q, k).

    Positions (b, q) and (b, k) give (b, heads, q, k).
    Where `heads` is no power of two, the first n heads, n the power of two below, have the slopes of n heads, and the rest every
    second slope of 2 n heads, from the first on, as in the paper's code.
    dtype: of the result, torch's default dtype unless given.
    Press et al., "Train Short, Test Long", 2021 (arXiv 2108.12409). Proven against `build_alibi_tensor` of transformers' Bloom,
    which adds slope * p_k: for causal attention the same after the softmax, but as large as the position, where this one is small
    near the query and rounds better in half precision. This one is symmetric, and so serves encoders too.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        require(heads > 0, "heads", heads, "positive")
        self.heads = heads

    def forward(self, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        distances = offsets(query_positions, key_positions).abs()
        dtype = dtype or torch.get_default_dtype()
        precise = torch.promote_types(dtype, torch.float32)
        slopes = self.slopes(distances.device).to(precise)
        return (rearrange(-slopes, "h -> h 1 1") * rearrange(distances.to(precise), "... q k -> ... 1 q k")).to(dtype)

    def slopes(self, device: torch.device) -> Tensor:
        """(heads,) in float64"""
        n = 2 ** (self.heads.bit_length() - 1)  # the highest power of two that is not above heads
        head = torch.arange(self.heads, dtype=torch.float64, device=device)
        exponents = torch.where(head < n, 8 / n * (head + 1), 4 / n * (2 * (head - n) + 1))
        return torch.exp2(-exponents)


class RelativeBias(nn.Module):
    """``bias[h, q, k] = table[bucket(p_k - p_q), h]``: query positions (q,), key positions (k,) -> (heads, q, k).

    Positions (b, q) and (b, k) give (b, heads, q, k).
    buckets:       bidirectional, one half is for keys up to the query and one for keys after it; else all are for keys up to the
                   query, and keys after it share bucket 0. On each side, the first half of the buckets hold one distance each,
                   the rest exponentially growing ranges.
    max_distance:  from here on all distances share the last bucket.
    dtype:         of the result, the table's unless given.
    Raffel et al., "Exploring the Limits of Transfer Learning" (T5), 2019 (arXiv 1910.10683). T5 shares one table among the layers
    of a stack, and does not divide scores by sqrt(head_dim). Proven against `T5Attention` of transformers, which rounds a float32
    logarithm down; here the bounds of the buckets are found in whole numbers. Starts normal with standard deviation 0.02.
    """

    def __init__(self, heads: int, buckets: int = 32, max_distance: int = 128, bidirectional: bool = True) -> None:
        super().__init__()
        require(heads > 0, "heads", heads, "positive")
        per_side, rest = divmod(buckets, 2) if bidirectional else (buckets, 0)
        require(per_side >= 2 and rest == 0, "buckets", buckets, "an even number from 4 on" if bidirectional else "2 or more")
        require(max_distance > per_side // 2, "max_distance", max_distance, f"more than {per_side // 2}")
        self.per_side, self.max_distance, self.bidirectional = per_side, max_distance, bidirectional
        self.bounds = bucket_bounds(per_side, max_distance)
        self.table = nn.Embedding(buckets, heads)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        bias = self.table(self.bucket(offsets(query_positions, key_positions)))
        return rearrange(bias, "... q k h -> ... h q k").to(dtype or bias.dtype)

    def bucket(self, offset: Tensor) -> Tensor:
        """Rows of the table for offsets key position - query position, of any shape."""
        distance = offset.abs() if self.bidirectional else (-offset).clamp(min=0)
        side = self.per_side * (offset > 0) if self.bidirectional else 0
        steps = torch.arange(self.max_distance + 1, device=offset.device)
        bucket_of = torch.stack([steps >= bound for bound in self.bounds]).sum(0)
        return side + bucket_of[distance.clamp(max=self.max_distance)]


def bucket_bounds(buckets: int, max_distance: int) -> tuple[int, ...]:
    """The least distance of every bucket but the first: 1, 2, ..., e, then e (max_distance / e)^(j / n), rounded up, 0 < j < n.

    e is half of the buckets, n the other half. Without rounding error: the least d with d^n >= max_distance^j e^(n - j).
    """
    e, n = buckets // 2, buckets - buckets // 2
    powers = [max_distance**j * e ** (n - j) for j in range(1, n)]
    return (*range(1, e + 1), *(bisect_left(range(max_distance), power, key=lambda d: d**n) for power in powers))


def frequencies(dim: int, base: float, device: torch.device) -> Tensor:
    """base^(-2i / dim), radians per position, in float64: (dim / 2,), rounded up."""
    return base ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)


def offsets(query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """(q,), (k,) -> key position - query position (q, k); (b, q), (b, k) -> (b, q, k)"""
    axes = ("length", "batch length")[query_positions.ndim == 2]
    require_axes(query_positions, "query_positions", axes)
    require_axes(key_positions, "key_positions", axes, batch=query_positions.shape[0])
    for positions, name in ((query_positions, "query_positions"), (key_positions, "key_positions")):
        require_integers(positions, name)
    return rearrange(key_positions.long(), "... k -> ... 1 k") - rearrange(query_positions.long(), "... q -> ... q 1")
