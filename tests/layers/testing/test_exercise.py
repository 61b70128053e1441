"""Arguments that contracts of one block try together, and laws of fresh values that a contract states."""

from __future__ import annotations

import pytest
from broken_blocks import Sound, check, contract
from broken_draws import WithoutLaw
from hypothesis import strategies as st

from layers.testing import initial_distribution
from layers.testing.exercise import unexercised, unexercised_by_any


def build(dim, **options):
    return Scaled(dim, **options)


class Scaled(Sound):
    def __init__(self, dim, scale=1.0, shift=0.0):
        super().__init__(dim)
        self.scale, self.shift = scale, shift

    def mix(self, x):
        return super().mix(x) * self.scale + self.shift


def test_contracts_of_one_block_try_its_arguments_together():
    """And those that a function hands on to the class that it builds."""
    plain, scaled, shifted = (
        contract(build, arguments=dict(dim=st.integers(2, 4), **more), twins=[])
        for more in ({}, dict(scale=2.0), dict(scale=st.sampled_from([1.0, 3.0]), shift=5.0))
    )
    missed = dict.fromkeys(("scale", "shift"), "the constructor is never given it")
    assert unexercised(plain) == missed
    assert unexercised(scaled) == missed | {"scale": "it is always 2.0"}
    nothing = lambda promise: []  # noqa: E731
    assert unexercised_by_any([plain, scaled], nothing) == {"shift": missed["shift"]}
    assert unexercised_by_any([plain, scaled, shifted], nothing) == {}
    of_class = [contract(Scaled, arguments=dict(dim=st.integers(2, 4), **more), twins=[]) for more in ({}, dict(scale=2.0))]
    assert unexercised_by_any(of_class, nothing) == {"shift": missed["shift"]}


def one(a, parameter):
    return 1, 0


def test_a_fresh_parameter_has_a_law_or_a_reason():
    for law in (one, "it is never drawn"):
        promise = contract(WithoutLaw, holds=[initial_distribution({"sc*": law})])
        check("initial_values", promise)
        check("initial_distribution", promise)
    with pytest.raises(AssertionError, match="must be 0 everywhere when fresh"):
        check(
            "initial_distribution", contract(WithoutLaw, holds=[initial_distribution({"*": lambda a, p: (0, 0), "scale": one})])
        )
    with pytest.raises(AssertionError, match="there is no parameter gain"):
        check("initial_distribution", contract(WithoutLaw, holds=[initial_distribution(gain=one)]))
    with pytest.raises(ValueError, match="scale must have a law or a reason why not"):
        initial_distribution({"scale": " "})
