"""Caches: their rows are chosen between steps, begin and end where each row's past does, and go back; compiled steps."""

from __future__ import annotations

import pytest
import torch
from attentions import attention
from torch import nn

from layers import masks
from layers.attention import MultiHeadAttention
from layers.cache import Cache, CrossCache, RollingCache, SharedCache
from layers.positions import ALiBi, RelativeBias, Rotary, Sinusoidal
from layers.rotary_scaling import Llama3Scaling


def test_a_batch_of_unequal_lengths_decodes_as_its_rows_alone():
    block = attention(causal=True, kv_heads=2)
    x, lengths = torch.randn(3, 7, 12, dtype=torch.float64), [7, 3, 5]
    left = masks.padding(torch.tensor(lengths), 7, side="left")
    cache, outputs = Cache(7), []
    with torch.no_grad():
        for piece in x.split([4, 1, 2], 1):
            outputs.append(block(piece, mask=left, cache=cache))
        batched = torch.cat(outputs, 1)
        for row, length in enumerate(lengths):
            torch.testing.assert_close(batched[row, 7 - length :], block(x[row : row + 1, 7 - length :])[0])


def test_cross_cache_computes_the_memory_once():
    block, memory = attention(), torch.randn(2, 6, 12, dtype=torch.float64)
    allowed, query = masks.padding(torch.tensor([6, 2]), 6), torch.randn(2, 3, 12, dtype=torch.float64)
    cache = CrossCache()
    memory[1, 2:] = float("nan")
    first = block(query, memory, mask=allowed, cache=cache)
    torch.testing.assert_close(first, block(query, memory, mask=allowed))
    again = block(query, torch.zeros_like(memory), mask=allowed, cache=cache)
    assert torch.equal(first, again)
    cache.select(torch.tensor([1, 1, 0]))
    reordered = block(query[[1, 1, 0]], memory[[1, 1, 0]], mask=allowed[[1, 1, 0]], cache=cache)
    torch.testing.assert_close(reordered, first[[1, 1, 0]])


@pytest.mark.parametrize("make", [lambda: Cache(6), lambda: SharedCache(6), lambda: RollingCache(3)])
def test_cache_rows_can_be_selected_between_steps(make):
    block = attention(causal=True, window=3)
    x, rows, cache = torch.randn(3, 6, 12, dtype=torch.float64), torch.tensor([2, 0, 0]), make()
    with torch.no_grad():
        block(x[:, :4], cache=cache)
        cache.select(rows)
        continued = torch.cat([x[rows, :4], x[:, 4:]], 1)
        torch.testing.assert_close(block(x[:, 4:], cache=cache), block(continued)[:, 4:])


def test_a_shared_cache_gives_what_a_cache_gives_and_copies_only_for_another_number_of_rows():
    block, plain, shared = attention(causal=True, kv_heads=2), Cache(9), SharedCache(9)
    chosen = [[2, 0, 0], [1, 1, 2], [0, 0, 1], [2, 2, 0, 1, 1], [4, 0, 3, 3, 1], [3, 1], [1, 0]]
    rows = 3
    with torch.no_grad():
        for n, kept in enumerate(chosen):
            x = torch.randn(rows, 1 + (n == 2), 12, dtype=torch.float64)
            assert torch.equal(block(x, cache=shared), block(x, cache=plain))
            memory = shared.keys
            for cache in (plain, shared):
                cache.select(torch.tensor(kept))
            assert (shared.keys is memory) == (len(kept) == rows)
            rows = len(kept)
        x = torch.randn(rows, 1, 12, dtype=torch.float64)
        assert torch.equal(block(x, cache=shared), block(x, cache=plain))


def test_a_shared_cache_grows_as_positions_come_and_keeps_what_it_holds():
    block, plain, shared = attention(causal=True, kv_heads=2), Cache(60), SharedCache(60)
    slots, rows = [], 3
    kept = [[1, 2, 0], [0, 0, 1, 2], [3, 1], [1, 0], [1, 1, 0], [2, 2, 1], [0], [0, 0]]
    with torch.no_grad():
        for tokens, chosen in zip((3, 12, 1, 1, 20, 1, 21, 1), kept, strict=True):
            x = torch.randn(rows, tokens, 12, dtype=torch.float64)
            torch.testing.assert_close(block(x, cache=shared), block(x, cache=plain))
            for cache in (plain, shared):
                cache.select(torch.tensor(chosen))
            rows = len(chosen)
            assert shared.rows.shape == (rows, shared.keys.shape[2])
            slots.append((int(shared.length), shared.keys.shape[2]))
    assert slots == [(3, 16), (15, 16), (16, 16), (17, 32), (37, 60), (38, 60), (59, 60), (60, 60)]
    with pytest.raises(ValueError, match="cache has a capacity of 60, got 60 \\+ 1 positions"):
        block(torch.randn(rows, 1, 12, dtype=torch.float64), cache=shared)


def test_a_compiled_step_of_a_shared_cache_serves_every_number_of_slots():
    block, plain, shared = attention(causal=True), Cache(40), SharedCache(40)
    x = torch.randn(2, 40, 12, dtype=torch.float64)
    with torch.no_grad():
        expected = block(x, cache=plain)
        found = [block(x[:, :15], cache=shared)]
        torch._dynamo.reset()
        step = torch.compile(lambda piece: block(piece, cache=shared), backend="eager", dynamic=True)
        for i in range(15, 40):
            shared.require_room(1)
            found.append(step(x[:, i : i + 1]))
    torch.testing.assert_close(torch.cat(found, 1), expected)


def test_one_compiled_step_serves_every_position():
    block, cache = attention(causal=True), Cache(8)
    x, graphs = torch.randn(2, 8, 12, dtype=torch.float64), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        expected = block(x)
        block(x[:, :3], cache=cache)
        torch._dynamo.reset()
        step = torch.compile(lambda piece: block(piece, cache=cache), backend=backend, fullgraph=True)
        found = torch.cat([step(x[:, i : i + 1]) for i in range(3, 8)], 1)
    torch.testing.assert_close(found, expected[:, 3:])
    assert len(graphs) == 1


def test_a_cross_cache_of_another_memory_is_refused():
    block, x, cache = attention(), torch.randn(3, 5, 12, dtype=torch.float64), CrossCache()
    block(x[:2], x[:2], cache=cache)
    with pytest.raises(ValueError, match="cache: batch must be 3, got 2"):
        block(x, x, cache=cache)
    with pytest.raises(ValueError, match="cache: keys must be 4, got 5"):
        block(x[:2], x[:2, :4], cache=cache)
    with pytest.raises(ValueError, match="cache: kv_heads must be 2, got 4"):
        attention(kv_heads=2)(x[:2], x[:2], cache=cache)


def test_a_cache_of_another_dtype_is_refused_and_left_alone():
    block, cache = attention(causal=True), Cache(5)
    block(torch.randn(2, 3, 12, dtype=torch.float64), cache=cache)
    with pytest.raises(ValueError, match="cache must be of the new keys' torch"):
        block.float()(torch.randn(2, 1, 12), cache=cache)
    assert int(cache.length) == 3


# ---------------------------------------------------------------------------- pasts of unequal length, and going back


class Absolute(nn.Module):
    """Unlike all that follow, not the same for positions that are all further on."""

    def __init__(self):
        super().__init__()
        self.sines = Sinusoidal(4)

    def forward(self, x, positions):
        return x + self.sines(positions, x.dtype).unsqueeze(-3)


POSITIONED = {
    "no positions": dict,
    "absolute": lambda: dict(positions=Absolute()),
    "rotary": lambda: dict(positions=Rotary(4)),
    "scaled rotary": lambda: dict(positions=Rotary(4, 100.0, scaling=Llama3Scaling(original_length=8))),
    "ALiBi": lambda: dict(position_bias=ALiBi(4)),
    "relative bias": lambda: dict(position_bias=RelativeBias(4, buckets=8, max_distance=20, bidirectional=False)),
}
CACHES = {"Cache": Cache, "SharedCache": SharedCache, "RollingCache": lambda capacity, start=None: RollingCache(4, start)}


def decoder(name):
    """With values that show every position: a bias that starts small would hardly."""
    torch.manual_seed(0)
    block = MultiHeadAttention(12, 4, head_dim=4, kv_heads=2, causal=True, window=4, **POSITIONED[name]()).double().eval()
    if isinstance(block.position_bias, RelativeBias):
        nn.init.normal_(block.position_bias.table.weight)
    return block


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("name", POSITIONED)
def test_rows_of_unequal_pasts_decode_as_alone(name, kind):
    """Whatever the padding holds, through a piece that is all padding for one row, and through `select`."""
    block, starts = decoder(name), torch.tensor([0, 4, 2])
    x = torch.randn(3, 7, 12, dtype=torch.float64)
    for row, start in enumerate(starts):
        x[row, :start] = float("nan")
    cache = CACHES[kind](20, starts)
    with torch.no_grad():
        found = torch.cat([block(piece, cache=cache) for piece in x.split([4, 1, 2], 1)], 1)
        assert found.isfinite().all()
        for row, start in enumerate(starts):
            torch.testing.assert_close(found[row, start:], block(x[row : row + 1, start:])[0])
        rows = torch.tensor([2, 0, 1, 1])
        cache.select(rows)
        new = torch.randn(4, 3, 12, dtype=torch.float64)
        found = torch.cat([block(piece, cache=cache) for piece in new.split([1, 2], 1)], 1)
        for n, row in enumerate(rows):
            whole = torch.cat([x[row, starts[row] :], new[n]])
            torch.testing.assert_close(found[n], block(whole[None])[0, -3:])


@pytest.mark.parametrize("kind", ["Cache", "SharedCache"])
@pytest.mark.parametrize("name", POSITIONED)
def test_going_back_equals_never_having_gone_forward(name, kind):
    block, x = decoder(name), torch.randn(3, 40, 12, dtype=torch.float64)
    for starts in (None, torch.tensor([0, 2, 1])):
        for length in (0, 3, 5, 20):
            if starts is not None and length == 0:
                continue
            gone, fresh = CACHES[kind](60, starts), CACHES[kind](60, starts)
            with torch.no_grad():
                block(x[:, :3], cache=gone)
                if kind == "SharedCache":
                    gone.select(torch.tensor([0, 1, 2]))
                block(x[:, 3:20], cache=gone)
                gone.truncate(length)
                if length:
                    block(x[:, :length], cache=fresh)
                for piece in x[:, 20:].split([1, 4, 15], 1):
                    torch.testing.assert_close(block(piece, cache=gone), block(piece, cache=fresh))
            assert int(gone.length) == length + 20


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("name", POSITIONED)
def test_each_row_goes_back_by_itself(name, kind):
    """As where a guess of several tokens is right for some rows up to here, for others up to there."""
    block, x = decoder(name), torch.randn(3, 6, 12, dtype=torch.float64)
    for starts in (torch.tensor([0, 0, 0]), torch.tensor([0, 2, 1])):
        cache = RollingCache(8, starts) if kind == "RollingCache" else CACHES[kind](20, starts)
        with torch.no_grad():
            block(x, cache=cache)
            kept = torch.tensor([3, 5, 4])
            cache.truncate(kept)
            assert int(cache.length) == 5
            new = torch.randn(3, 4, 12, dtype=torch.float64)
            found = torch.cat([block(piece, cache=cache) for piece in new.split([1, 3], 1)], 1)
            for row, (start, length) in enumerate(zip(starts, kept, strict=True)):
                whole = torch.cat([x[row, start:length], new[row]])
                torch.testing.assert_close(found[row], block(whole[None])[0, -4:])


def test_a_rolling_cache_goes_back_as_far_as_it_remembers():
    block, x = attention(causal=True, window=3), torch.randn(2, 8, 12, dtype=torch.float64)
    new = torch.randn(2, 6, 12, dtype=torch.float64)
    with torch.no_grad():
        for length in range(9):
            cache = RollingCache(5)
            block(x, cache=cache)
            if length < 5:  # of the slots 3 to 7 that are left, the next query sees length - 2 and length - 1
                with pytest.raises(ValueError, match=f"length must be 5 or more, .*3 have been dropped, got {length}"):
                    cache.truncate(length)
                length = 8
            cache.truncate(length)
            found = torch.cat([block(new[:, i : i + 1], cache=cache) for i in range(6)], 1)
            torch.testing.assert_close(found, block(torch.cat([x[:, :length], new], 1))[:, length:])
        cache = RollingCache(5)
        block(x[:, :5], cache=cache)
        cache.truncate(1)  # nothing has been dropped yet
        torch.testing.assert_close(block(new, cache=cache), block(torch.cat([x[:, :1], new], 1))[:, 1:])
        cache = RollingCache(5)
        block(x, cache=cache)
        cache.truncate(6)
        with pytest.raises(ValueError, match="slots below 3 have been dropped, got 4"):
            cache.truncate(4)


@pytest.mark.parametrize("length", [-1, 5, 1.0, torch.tensor([1, 5]), torch.tensor([1, 2, 3]), 0, torch.tensor([4, 0])])
def test_lengths_that_cannot_be_gone_back_to_are_refused(length):
    cache = Cache(9, torch.tensor([0, 1]))
    attention(causal=True)(torch.randn(2, 4, 12, dtype=torch.float64), cache=cache)
    keys = cache.keys.clone()
    with pytest.raises(ValueError, match="length"):
        cache.truncate(length)
    assert int(cache.length) == 4
    assert torch.equal(cache.keys, keys)
    assert cache.start.tolist() == [0, 1]


class Elsewhere(torch.Tensor):
    """Integers on another device: they meet none of this one before they are moved."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            out = function(*args, **(kwargs or {}))
            if not isinstance(out, torch.Tensor):
                return out
            if function is torch.Tensor.to:
                return out.as_subclass(torch.Tensor)
            here = [x for x in args if isinstance(x, torch.Tensor) and not isinstance(x, Elsewhere) and x.ndim > 0]
            assert not here, "all tensors must be on the same device"
            return out.as_subclass(cls)


@pytest.mark.parametrize("kind", CACHES)
def test_lengths_and_starts_come_from_any_device(kind):
    block, x = attention(causal=True, window=3), torch.randn(3, 6, 12, dtype=torch.float64)
    found = []
    for cls in (torch.Tensor, Elsewhere):
        start, length = (torch.tensor(n).as_subclass(cls) for n in ([0, 2, 1], [3, 5, 4]))
        cache = CACHES[kind](20, start)
        with torch.no_grad():
            block(x[:, :5], cache=cache)
            cache.truncate(length)
            found.append(block(x[:, 5:], cache=cache))
        assert type(cache.start) is torch.Tensor
    assert torch.equal(*found)


@pytest.mark.parametrize("name", POSITIONED)
def test_packed_documents_and_left_padding_attend_as_alone(name):
    """The caller gives the positions, of which the attention has no other way to know."""
    block, x = decoder(name), torch.randn(2, 7, 12, dtype=torch.float64)
    documents = torch.tensor([[0, 0, 1, 1, 1, 1, 2], [5, 5, 5, 5, 5, 3, 3]])
    found = block(x, mask=masks.packed(documents), positions=masks.packed_positions(documents))
    for row in range(2):
        for document in documents[row].unique():
            own = documents[row] == document
            torch.testing.assert_close(found[row, own], block(x[row : row + 1, own])[0])
    real = masks.allowed_from_lengths(torch.tensor([3, 7]), 7, "left")
    found = block(x, mask=masks.for_keys(real), positions=masks.padded_positions(real))
    for row in range(2):
        torch.testing.assert_close(found[row, real[row]], block(x[row : row + 1, real[row]])[0])
    if name != "no positions":
        stretched = block(x[:1], positions=3 * torch.arange(7))
        assert not torch.allclose(stretched, block(x[:1]))
    if name not in ("no positions", "absolute"):
        torch.testing.assert_close(stretched, block(x[:1], positions=3 * torch.arange(7)[None] + 40))
