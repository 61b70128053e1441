"""Caches that join: rows of two of them go on in one, each as it would alone."""

from __future__ import annotations

import pytest
import torch
from attentions import attention

from layers.cache import Cache, RollingCache


@pytest.mark.parametrize("lengths", [(3, 5), (5, 3), (4, 4)])
def test_rows_of_two_caches_go_on_together_as_alone(lengths, monkeypatch):
    """The first cache has a row that begins later; both get another capacity, which one of them had more of."""
    monkeypatch.delattr(Cache, "move")  # rows are copied once, and not gathered before
    block = attention(causal=True, kv_heads=2)
    starts, caches = torch.tensor([0, 2]), [Cache(5, torch.tensor([0, 2])), Cache(20)]
    begun = [torch.randn(2, n, 12, dtype=torch.float64) for n in lengths]
    with torch.no_grad():
        for x, cache in zip(begun, caches, strict=True):
            block(x, cache=cache)
        caches[0].join(caches[1], 8)
        new = torch.randn(4, 3, 12, dtype=torch.float64)
        found = torch.cat([block(piece, cache=caches[0]) for piece in new.split([1, 2], 1)], 1)
        for n, row in enumerate([*begun[0], *begun[1]]):
            whole = torch.cat([row[starts[n] if n < 2 else 0 :], new[n]])
            torch.testing.assert_close(found[n], block(whole[None])[0, -3:])
    assert caches[0].keys.shape[2] == caches[0].capacity == 8


def test_padding_of_all_rows_is_dropped():
    """Whoever had the slots has left; nothing else moves, and capacity need not have room for them."""
    block, starts = attention(causal=True), torch.tensor([0, 3, 4])
    cache, other = Cache(6, starts), Cache(6)
    begun, one = torch.randn(3, 6, 12, dtype=torch.float64), torch.randn(1, 2, 12, dtype=torch.float64)
    new = torch.randn(3, 1, 12, dtype=torch.float64)
    with torch.no_grad():
        block(begun, cache=cache)
        block(one, cache=other)
        cache.select(torch.tensor([1, 2]))
        cache.join(other, 4)
        assert (cache.start.tolist(), int(cache.length), cache.keys.shape[2]) == ([0, 1, 1], 3, 4)
        found = block(new, cache=cache)
        for n, row in enumerate([begun[1, 3:], begun[2, 4:], one[0]]):
            torch.testing.assert_close(found[n], block(torch.cat([row, new[n]])[None])[0, -1:])


def test_caches_that_cannot_join_are_refused():
    block, x = attention(causal=True, window=3), torch.randn(1, 3, 12, dtype=torch.float64)
    filled, rolling = Cache(6), RollingCache(3)
    for cache in (filled, rolling):
        block(x, cache=cache)
    for one, other in ((filled, rolling), (rolling, filled), (filled, Cache(6)), (Cache(6), filled)):
        with pytest.raises(ValueError, match="other must be a Cache to a Cache, both of them filled"):
            one.join(other, 6)
    with pytest.raises(ValueError, match="capacity must be 3 at least, which are filled, got 2"):
        filled.join(filled, 2)
