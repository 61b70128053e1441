"""Scaled dot-product attention: softmax(q k^T / sqrt(head_dim) + bias) v, over several heads at once.

    multi-head          grouped-query       multi-query         `heads` queries share `kv_heads` keys and values:
    q q q q  heads=4    q q q q  heads=4    q q q q  heads=4    neighbouring queries share one, so that all keys and
    k k k k  kv_heads=4  k   k   kv_heads=2    k     kv_heads=1 values fit into less memory

Vaswani et al., "Attention Is All You Need", 2017 (arXiv 1706.03762); Ainslie et al., "GQA", 2023 (arXiv 2305.13245).

Differs from `nn.MultiheadAttention`: True in a mask means "may attend", a query that may attend to nothing gets zeros where
others get NaN, what a mask hides from all queries may hold NaN, and positions, norms and biases are modules that are passed in.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from layers import masks
from layers.backends import attended
from layers.cache import Cache, CrossCache
from layers.checks import require, require_axes, require_integers
from layers.padding import RealTokens
from layers.positions import Angles


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
    softcap: float | None = None,
    return_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """query (b, h, q, d), key (b, h, k, d), value (b, h, k, e) -> output (b, h, q, e), and weights (b, h, q, k) if asked for.

    mask:    boolean, broadcastable to (b, h, q, k). Queries that may attend to nothing give zeros.
    bias:    float, added to the scores, broadcastable to (b, h, q, k).
    causal:  each query up to its own position, the last query being at the last key.
    dropout: probability with which a weight is dropped; the weights returned are those before.
    softcap: scores s become softcap * tanh(s / softcap), before the bias.
    return_weights: use the formula written down, as with a softcap, in place of torch's fused kernels, which need memory for
             q + k rows, not q * k, unless there is a bias or dropout.
    Errors: `ValueError` for sizes that do not agree, and dtypes of mask and bias.

    Forward-mode derivatives, transforms of `torch.func` and second derivatives go by the formula too, for fused kernels have none
    of these: they need memory for q * k. With dropout on a GPU, second derivatives need
    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`; compiled, torch has none of any kernel.
    """
    require_axes(query, "query", "batch heads queries head_dim")
    (b, h, q, d), keys = query.shape, key.shape[2] if key.ndim == 4 else 0
    require_axes(key, "key", "batch heads keys head_dim", batch=b, heads=h, head_dim=d)
    require_axes(value, "value", "batch heads keys head_dim", batch=b, heads=h, keys=keys)
    if mask is not None:
        require(mask.dtype == torch.bool, "mask", mask.dtype, "boolean, True where a query may attend")
    if bias is not None:
        require(bias.is_floating_point(), "bias", bias.dtype, "floating point")
    for name, x in (("mask", mask), ("bias", bias)):
        if x is not None:
            require(x.ndim <= 4, name, tuple(x.shape), "of 4 axes at most")
            masks.require_fits(x, name, batch=b, heads=h, queries=q, keys=keys)
    mask, bias = (None if x is None else torch.atleast_2d(x) for x in (mask, bias))  # kernels take no fewer axes
    require(softcap is None or softcap > 0, "softcap", softcap, "positive")
    return attended(query, key, value, mask, bias, causal, dropout, return_weights, softcap)


class MultiHeadAttention(nn.Module):
    """query (b, q, dim) attends to key (b, k, key_dim) and value (b, k, value_dim) -> (b, q, dim); alone, to itself.

    kv_heads:  heads of keys and values, a divisor of `heads` (default: as many).
    head_dim:  features of a head (default: dim / heads).
    bias, output_bias: of the three projections that go in, and of the one that goes out (default: the same).
    causal:    a query attends up to its own place in the sequence, the last query being at the last key.
    window:    only to places less than this apart.
    dropout:   of the attention weights, in training.
    softcap:   bound of the scores, softcap * tanh(score / softcap), as in Gemma 2.
    positions: module (x (b, h, n, head_dim), positions (n,) or (b, n)) -> x for queries and keys of a self-attention: `Rotary`.
    query_norm, key_norm: modules over head_dim, before `positions`.
    position_bias: module (query positions (q,), key positions (k,), dtype) -> (heads, q, k), such as `ALiBi`; with a batch axis
               in front of all three where the caller gives positions (b, n).

    Proven against `nn.MultiheadAttention`, and the attentions of Llama, BERT, GPT-2 and Marian of transformers.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        key_dim: int | None = None,
        value_dim: int | None = None,
        bias: bool = True,
        output_bias: bool | None = None,
        causal: bool = False,
        window: int | None = None,
        dropout: float = 0.0,
        softcap: float | None = None,
        positions: nn.Module | None = None,
        query_norm: nn.Module | None = None,
        key_norm: nn.Module | None = None,
        position_bias: nn.Module | None = None,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        require(heads > 0, "heads", heads, "positive")
        require(kv_heads > 0 and heads % kv_heads == 0, "kv_heads", kv_heads, f"a divisor of the {heads} heads")
        require(head_dim is not None or dim % heads == 0, "heads", heads, f"a divisor of dim {dim}, unless head_dim is given")
        require(head_dim is None or head_dim > 0, "head_dim", head_dim, "positive")
        require(window is None or window > 0, "window", window, "positive")
        require(0 <= dropout < 1, "dropout", dropout, "a probability below 1")
        require(softcap is None or softcap > 0, "softcap", softcap, "positive")
        head_dim = dim // heads if head_dim is None else head_dim
        self.dim, self.key_dim, self.value_dim = dim, key_dim or dim, value_dim or key_dim or dim
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.causal, self.window, self.dropout, self.softcap = causal, window, dropout, softcap
        self.query = nn.Linear(dim, heads * head_dim, bias)
        self.key = nn.Linear(self.key_dim, kv_heads * head_dim, bias)
        self.value = nn.Linear(self.value_dim, kv_heads * head_dim, bias)
        self.output = nn.Linear(heads * head_dim, dim, bias if output_bias is None else output_bias)
        self.query_norm, self.key_norm, self.positions, self.position_bias = query_norm, key_norm, positions, position_bias

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        positions: Tensor | Angles | None = None,
        cache: Cache | CrossCache | None = None,
        return_weights: bool = False,
        real: RealTokens | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Output (b, q, dim), and the weights (b, heads, q, k) before dropout if `return_weights`.

        key, value: default to `query` and to `key`.
        mask:  boolean, True = may attend, broadcastable to (b, heads, q, k); k counts the slots of the cache too.
        positions: integers (q,) or (b, q), of a self-attention: for packed documents, and for padding on the left without a
               cache; by default places in the sequence, which go on where the cache ends. What is causal or within the window
               depends on places; an attention without `positions` and `position_bias` ignores them. For a `Rotary`, its
               `angles` too.
        cache: a `Cache` or `RollingCache` for a causal self-attention; a `CrossCache`.
        real:  of a self-attention without a cache, whose query is (1, t, dim), the real tokens of its rows (b, q), and so is the
               output. Mask, positions and weights are those of the rows; the mask need not hide the padding.
        Errors: `ValueError` for inputs and caches whose sizes do not agree, and a mask that is not boolean or does not broadcast.
        """
        itself, own = key is None, cache if isinstance(cache, Cache) else None
        key = query if key is None else key
        value = key if value is None else value
        self.check(query, key, value, mask, positions, cache, itself, real)
        queries = query.shape[1] if real is None else real.mask.shape[1]
        at_query = torch.arange(queries, device=query.device) + (key.shape[1] - query.shape[1])
        at_query = at_query if own is None else own.slots(query.shape[1], query.device)
        at_key = at_query if itself else torch.arange(key.shape[1], device=query.device)
        hidden = None
        if mask is not None and (cache is None or mask.shape[-2] == 1):  # with a cache, a later query may see what these do not
            hidden = hidden_by(mask if own is None else at(mask, at_key))
        if real is not None:
            hidden = None if hidden is None else real.take(hidden.expand(*real.mask.shape, 1))
            mask = masks.for_keys(real.mask) if mask is None else mask & masks.for_keys(real.mask)
        if own is not None and own.start is not None and own.padded:
            padding = hidden_by(own.written(at_key))
            hidden = padding if hidden is None else hidden | padding

        def keys_and_values() -> tuple[Tensor, Tensor]:
            x = key if hidden is None else key.masked_fill(hidden, 0.0)  # for 0 * NaN is NaN
            y = x if value is key else value if hidden is None else value.masked_fill(hidden, 0.0)
            return self.split(self.key(x), self.key_norm, real), self.split(self.value(y), None, real)

        q = self.split(self.query(query), self.query_norm, real)
        k, v = cache.keep(keys_and_values) if isinstance(cache, CrossCache) else keys_and_values()
        if self.positions is not None:
            places = at_query if own is None else own.positions(at_query)
            q, k = (self.positions(x, places if positions is None else positions) for x in (q, k))
        if own is not None:
            k, v, at_key = own.append(k, v)
            seen = masks.up_to(at_query, at_key) & own.written(at_key)
            mask = seen if mask is None else at(mask, at_key) & seen
        if self.window is not None:
            near = masks.near(at_query, at_key, self.window)
            mask = near if mask is None else mask & near
        bias = None
        if self.position_bias is not None:
            bias = self.position_bias(*((at_query, at_key) if positions is None else (positions, positions)), q.dtype)
            axes = "heads queries keys" if bias.ndim == 3 else "batch heads queries keys"
            require_axes(bias, "position_bias", axes, batch=q.shape[0], heads=self.heads, queries=q.shape[2], keys=k.shape[2])
        if self.kv_heads < self.heads:
            k, v = (x.repeat_interleave(self.heads // self.kv_heads, 1) for x in (k, v))
        dropout = self.dropout if self.training else 0.0
        output, weights = attended(q, k, v, mask, bias, self.causal and own is None, dropout, return_weights, self.softcap)
        output = rearrange(output, "b h q d -> b q (h d)")
        output = self.output(output if real is None else real.take(output))
        return output if weights is None else (output, weights)

    def split(self, x: Tensor, norm: nn.Module | None = None, real: RealTokens | None = None) -> Tensor:
        x = x if real is None else real.put(x)
        x = rearrange(x, "b n (h d) -> b h n d", d=self.head_dim)
        return x if norm is None else norm(x)

    def check(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        positions: Tensor | Angles | None,
        cache: Cache | CrossCache | None,
        itself: bool,
        real: RealTokens | None,
    ) -> None:
        require_axes(query, "query", "batch queries dim", dim=self.dim)
        require_axes(key, "key", "batch keys key_dim", batch=query.shape[0], key_dim=self.key_dim)
        (batch, queries, _), keys = query.shape, key.shape[1]
        require_axes(value, "value", "batch keys value_dim", batch=batch, keys=keys, value_dim=self.value_dim)
        if not itself and (self.positions is not None or positions is not None or isinstance(cache, Cache)):
            raise ValueError("key must be None where there are positions or a Cache, which are for self-attention")
        if real is not None:
            require(itself and cache is None, "real", "real tokens", "None with a key or a cache")
            require_axes(query, "query", "batch queries dim", batch=1, queries=real.index.shape[0])
            (batch, queries), keys = real.mask.shape, real.mask.shape[1]
        if isinstance(positions, Angles):
            require(self.position_bias is None, "positions", "angles", "integers for a position_bias")
        elif positions is not None:
            axes = "queries" if positions.ndim == 1 else "batch queries"
            require_axes(positions, "positions", axes, batch=batch, queries=queries)
            require_integers(positions, "positions")
            biased = cache is not None and self.position_bias is not None
            require(not biased, "positions", "positions", "None with a cache and a position_bias: give the cache a start")
        if isinstance(cache, Cache):
            require(self.causal, "cache", type(cache).__name__, "None or a CrossCache unless the attention is causal")
            cache.check(batch, self.kv_heads, self.head_dim, self.window)
        elif cache is not None:
            cache.check(batch, self.kv_heads, keys, self.head_dim)
        if mask is not None:
            require(mask.dtype == torch.bool and 2 <= mask.ndim <= 4, "mask", f"{mask.ndim} axes of {mask.dtype}",
                    "boolean, with 2 to 4 axes that broadcast to (b, heads, q, k)")  # fmt: skip
            sizes = dict(batch=batch, heads=self.heads, queries=queries)
            if isinstance(cache, Cache):
                keys += 0 if torch.compiler.is_compiling() else int(cache.length)
                require(mask.shape[-1] == 1 or mask.shape[-1] >= keys, "mask", tuple(mask.shape),
                        f"{keys} keys wide, those in the cache too")  # fmt: skip
            else:
                sizes["keys"] = keys
            masks.require_fits(mask, "mask", **sizes)


def at(mask: Tensor, positions: Tensor) -> Tensor:
    """The columns of a mask (..., k) for keys at these positions; those that do not exist yet get any."""
    return mask if mask.shape[-1] == 1 else mask.index_select(-1, positions.clamp(0, mask.shape[-1] - 1))


def hidden_by(mask: Tensor) -> Tensor:
    """Mask (..., q, k) -> (b, k, 1) or (k, 1): True for keys that no query of any head may attend to."""
    seen = mask.any(-2) if mask.ndim == 2 else mask.any(-2).any(-2)
    return ~rearrange(seen, "... k -> ... k 1")
