"""Larger sizes than are drawn: what counts as refused, and what is not tried."""

from __future__ import annotations

from dataclasses import replace

import pytest
from broken_blocks import Sound, check, contract
from broken_draws import AlteredWhenLongAndFlipped, AlteredWhenWide, Attending, FailsWhenLong, attending
from hypothesis import strategies as st
from torch import nn

from layers.checks import require
from layers.testing import Twin, mask, tensor
from layers.testing.beyond import beyond_drawn_sizes
from layers.testing.verdicts import Inapplicable
from layers.weights import WeightMap


def reason(promise) -> str:
    verdict = beyond_drawn_sizes(promise)
    assert isinstance(verdict, Inapplicable)
    return verdict.reason


class Refusing(FailsWhenLong):
    def mix(self, x):
        require(x.shape[1] <= 64, "time", x.shape[1], "at most 64")
        return super().mix(x)


class Doubling(Sound):
    """Channels double with each level."""

    def __init__(self, dim: int, levels: int) -> None:
        super().__init__(dim)
        self.other = nn.Linear(1, 2**levels)


def test_a_refusal_names_what_it_refuses():
    check("beyond_drawn_sizes", contract(Refusing))
    with pytest.raises(AssertionError, match=r"with time=131: IndexError .* must be refused by a `ValueError` that names it"):
        check("beyond_drawn_sizes", contract(FailsWhenLong))
    check("beyond_drawn_sizes", contract(FailsWhenLong, small={"time": "it has a table of 64 places"}))
    with pytest.raises(AssertionError, match="small names tim, which is neither an argument nor an axis"):
        check("beyond_drawn_sizes", contract(Sound, small={"tim": "a slip"}))
    with pytest.raises(ValueError, match=r"small\['time'\] must give a reason"):
        contract(Sound, small={"time": " "})


def test_an_argument_may_stay_small():
    check("beyond_drawn_sizes", contract(AlteredWhenWide, small={"dim": "a reason"}))


def test_what_would_take_all_memory_is_not_built():
    promise = contract(Doubling, arguments=dict(dim=st.integers(2, 4), levels=st.integers(1, 3)), twins=[], invalid=[])
    told = reason(promise)
    assert "levels=37: it has 274877906" in told


def test_a_twin_that_refuses_is_named():
    def build(arguments):
        require(arguments.dim < 9, "dim", arguments.dim, "small")
        return Short(arguments.dim)

    promise = contract(Sound, twins=[Twin("short", build, WeightMap(("linear", "linear")), lambda m, i: m(i["x"]))])
    told = reason(promise)
    assert "time=131: short does not take it, ValueError" in told
    assert "dim=37: short is not built, ValueError" in told


class Short(Sound):
    def mix(self, x):
        require(x.shape[1] < 9, "time", x.shape[1], "short")
        return super().mix(x)


def test_other_values_of_arguments_are_long_too():
    promise = contract(AlteredWhenLongAndFlipped, arguments=dict(dim=st.integers(2, 4), flip=st.booleans()))
    with pytest.raises(AssertionError, match="with time=131: output"):
        check("beyond_drawn_sizes", promise)
    check("beyond_drawn_sizes", replace(promise, arguments=dict(dim=st.integers(2, 4), flip=False)))


def test_one_head_has_no_other():
    with pytest.raises(pytest.skip.Exception, match="it always has one head"):
        check("heads_masked", contract(Attending, **attending | dict(arguments=dict(heads=1))))


class Hiding(nn.Module):
    def __init__(self, num_heads):
        super().__init__()
        self.attend = Attending(num_heads)

    def forward(self, x, mask):
        return self.attend(x, mask.all(1, keepdim=True))


def test_heads_go_by_two_names():
    promise = contract(Hiding, **attending | dict(
        arguments=dict(num_heads=st.integers(1, 3)),
        inputs=lambda a: dict(x=tensor("batch time dim", dim=2 * a.num_heads), mask=mask("batch 1 1 time")),
        outputs=lambda a, s: ("batch", "time", 2 * a.num_heads),
    ))  # fmt: skip
    with pytest.raises(AssertionError, match="hides from the first head"):
        check("heads_masked", promise)
