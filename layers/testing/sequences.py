"""Claims of blocks that take sequences: what a mask hides does not matter, and pieces give what the whole gives."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from layers.testing.behaviour import require_finite
from layers.testing.claims import axis_of, first
from layers.testing.contract import Case, is_float
from layers.testing.drawing import Input
from layers.testing.equality import require_equal
from layers.testing.properties import Property


def padding_invariant(source: str, axis: str, output_axis: int, mask: str = "mask", nan: bool = True) -> Property:
    """What the mask hides does not matter, on the left or on the right, even NaN; what it shows does.

    The gradients are those without padding too, and what stands at hidden positions, if it is finite, gives finite outputs there.
    The contract's `mask` input, if any, is replaced by one of (b, 1, 1, n) that hides the padding alone. NaN is left out where
    ``nan=False``, and for `foreign` blocks: a mask that multiplies does not hide it.
    """

    def check(case: Case) -> bool:
        block, inputs = case.block(), case.inputs()
        dim, x = axis_of(case, source, axis), inputs[source]
        n, batch = x.shape[dim], x.shape[0]

        def shows(length: int, start: int = 0, stop: int | None = None) -> Tensor:
            positions = torch.arange(length)
            return ((positions >= start) & (positions < (length if stop is None else stop))).repeat(batch, 1, 1, 1)

        expected = at_real_positions(case, block, {**inputs, mask: shows(n)}, source, output_axis)
        junk = case.inputs(stream=3)[source].narrow(dim, 0, 2 if n > 1 else 1)
        worst = torch.full_like(junk, float("nan")) if is_float(junk) else junk.flip(dim)
        shown = False
        for side in ("left", "right"):
            start = junk.shape[dim] if side == "left" else 0
            for values in (junk, worst) if nan and not case.contract.foreign else (junk,):
                padded = torch.cat([values, x] if side == "left" else [x, values], dim)
                length = padded.shape[dim]
                given = {**inputs, source: padded, mask: shows(length, start, start + n)}
                found = at_real_positions(case, block, given, source, output_axis, start, n, length)
                require_equal(found[0], expected[0], case.tolerance(block), f"output with {side} padding", 1.0)
                if values is junk:
                    require_finite(found[1], f"output at hidden positions, with {side} padding")
                    require_finite(found[2], f"gradient with {side} padding")
                    if source in found[2]:
                        found[2][source] = found[2][source].narrow(dim, start, n)
                    limit = 10 * case.tolerance(block)
                    require_equal(found[2], expected[2], limit, f"gradient with {side} padding", 1.0)
                seen = first(case.call(block, {**given, mask: shows(length)}))
                seen = seen.narrow(output_axis, start, n) if seen.shape[output_axis] == length else seen
                shown |= not torch.equal(seen, expected[0])
        return shown

    return Property("padding_invariant", check, gives=(mask,))


def at_real_positions(
    case: Case,
    block: nn.Module,
    inputs: dict[str, Any],
    source: str,
    axis: int,
    start: int = 0,
    count: int | None = None,
    length: int | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The first output at the real positions, the whole of it, and gradients of a drawn sum over these positions."""
    inputs = {**inputs, source: inputs[source].detach().clone().requires_grad_(is_float(inputs[source]))}
    whole = first(case.call(block, inputs))
    output = whole.narrow(axis, start, count or 0) if length is not None and whole.shape[axis] == length else whole
    variables = {name: p for name, p in block.named_parameters() if p.requires_grad}
    if is_float(inputs[source]):
        variables[source] = inputs[source]
    if not variables or not output.requires_grad:
        return output.detach(), whole.detach(), {}
    weights = torch.randn(output.shape, generator=case.generator(2), dtype=output.dtype)
    found = torch.autograd.grad(output, list(variables.values()), weights, allow_unused=True)
    dense = {k: g.to_dense() if g.is_sparse else g for k, g in zip(variables, found, strict=True) if g is not None}
    return output.detach(), whole.detach(), dense


def streaming(
    source: str, axis: str, output_axis: int, state: str = "state", carry: Callable[[Any], dict[str, Any]] | None = None
) -> Property:
    """Fed piece by piece, each with the state that the one before gave back, the block gives what it gives for the whole.

    Cut in every way where the sequence is short, in 16 ways where it is longer, and so are all inputs that have the axis. The
    last state is that of the whole too, and a state that is dropped shows.

    state: the input that takes the state; without it in the contract's inputs the block begins without one.
    carry: output -> inputs of the next piece; by default the second part of the output, as `state`.
    """
    after = carry or (lambda output: {state: output[1]})

    def check(case: Case) -> bool:
        block, inputs, shown = case.block(), case.inputs(), False
        n = inputs[source].shape[axis_of(case, source, axis)]
        cut = {k: s.axes.index(axis) for k, s in case.specs.items() if isinstance(s, Input) and axis in s.axes}
        ways = torch.arange(1, 2 ** (n - 1))
        if n > 5:
            ways = 1 + torch.randint(2 ** min(n - 1, 30) - 1, (16,), generator=case.generator(4))

        def pieces(bounds: list[int], carried: bool) -> tuple[Tensor, dict[str, Any]]:
            given, outputs, last = inputs, [], None
            for i, j in pairwise(bounds):
                last = case.call(block, {**given, **{k: inputs[k].narrow(d, i, j - i) for k, d in cut.items()}})
                outputs.append(first(last))
                given = {**given, **after(last)} if carried else given
            return torch.cat(outputs, output_axis), after(last)

        with torch.no_grad():
            whole, end = pieces([0, n], carried=False)
            for way in ways.tolist():
                bounds = [0, *(i + 1 for i in range(n - 1) if way >> i & 1), n]
                found, state_after = pieces(bounds, carried=True)
                require_equal(found, whole, case.tolerance(block), f"output for the pieces {bounds}", 1.0)
                require_equal(state_after, end, case.tolerance(block), f"state after the pieces {bounds}", 1.0)
                shown |= not torch.equal(pieces(bounds, carried=False)[0], found)
        return shown

    return Property("streaming", check, cost=2, gives=(state,))


def cache_consistent(source: str, axis: str, output_axis: int, cache: Callable[[Any, int], Any]) -> Property:
    """Fed piece by piece with a cache, in every way to cut the sequence, the block gives what it gives for the whole.

    cache: (arguments, positions) -> a fresh cache, passed to the block as `cache`.
    """

    def check(case: Case) -> bool:
        block, inputs = case.block(), case.inputs()
        dim, shown = axis_of(case, source, axis), False
        n = inputs[source].shape[dim]
        with torch.no_grad():
            whole = first(case.call(block, inputs))
            for cuts in range(2 ** (n - 1)):
                bounds = [0, *(i + 1 for i in range(n - 1) if cuts >> i & 1), n]
                pieces = [inputs[source].narrow(dim, i, j - i) for i, j in pairwise(bounds)]
                state = cache(case.arguments, n)
                found = torch.cat([first(case.call(block, {**inputs, source: p, "cache": state})) for p in pieces], output_axis)
                require_equal(found, whole, case.tolerance(block), f"output for the pieces {bounds}", 1.0)
                if len(pieces) > 1:
                    fresh = [cache(case.arguments, n) for _ in pieces]
                    try:
                        forgetful = [
                            first(case.call(block, {**inputs, source: p, "cache": c})) for p, c in zip(pieces, fresh, strict=True)
                        ]
                        shown |= not torch.equal(torch.cat(forgetful, output_axis), found)
                    except ValueError:
                        pass  # a mask of another width
        return shown

    return Property("cache_consistent", check, cost=2, gives=("cache",))
