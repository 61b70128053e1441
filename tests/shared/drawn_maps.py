"""Drawn weight maps, and the states that they map."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from layers.weights import WeightMap

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64])


def bits(shape, dtype, seed):
    """Random bits of that dtype, NaN and negative zero included."""
    count = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.randint(256, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


@st.composite
def maps(draw):
    """Rows of all kinds in drawn number and order, and a state that fits them."""
    rows, state, constants = [], {}, {}
    for r in range(draw(st.integers(1, 6))):
        kind = draw(
            st.sampled_from(["module", "transpose", "permute", "stack", "join", "split", "tied", "ours tied", "constant"])
        )
        dtype, seed = draw(DTYPES), draw(st.integers(0, 2**16))
        o, i, h = draw(st.permutations([2, 3, 5]))
        depth = draw(st.integers(1, 3))

        def put(name, *shape, dtype=dtype, seed=seed, depth=depth, r=r):
            for n in range(depth):
                state[f"a{r}.{n}.{name}"] = bits(shape, dtype, seed + n + 10 * len(state))

        ours, theirs = f"a{r}.{{i}}.", f"b{r}.{{i}}."
        if kind == "module":
            rows.append((f"{ours}norm", f"{theirs}ln"))
            put("norm.weight", o)
            put("norm.running_var", i)
            put("norm.num_batches_tracked", dtype=torch.int64)
        elif kind == "transpose":
            rows.append((f"{ours}w", f"{theirs}w", "o i -> i o"))
            put("w", o, i)
        elif kind == "permute":
            rows.append((f"{ours}w", f"{theirs}w", "(h two d) i -> (h d two) i", dict(h=h, two=2)))
            put("w", h * 2 * o, i)
        elif kind == "stack":
            rows.append((f"{ours}q {ours}k {ours}v", f"{theirs}qkv", "n o i -> (n o) i"))
            for name in "qkv":
                put(name, o, i)
        elif kind == "join":
            rows.append((f"{ours}q {ours}kv", f"{theirs}qkv", "q i, i kv -> i (q + kv)"))
            put("q", o, i)
            put("kv", i, h)
        elif kind == "split":
            rows.append((f"{ours}qkv", f"{theirs}q {theirs}kv", "(q + kv) i -> q i, i kv", dict(q=o)))
            put("qkv", o + h, i)
        elif kind == "tied":
            rows.append((f"{ours}e", f"{theirs}e {theirs}head"))
            put("e", o, i)
        elif kind == "ours tied":
            rows.append((f"{ours}e {ours}head", f"{theirs}e"))
            put("e", o, i)
            for n in range(depth):
                state[f"a{r}.{n}.head"] = state[f"a{r}.{n}.e"]
        else:
            rows.append((f"{ours}w", f"{theirs}w"))
            put("w", o)
            constants[f"{theirs}positions"] = torch.arange(i)
    return WeightMap(*draw(st.permutations(rows)), constants=constants), state
