"""Arguments that contracts of one block try together, and laws of fresh values that a contract states."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from broken_blocks import Sound, check, contract
from broken_draws import WithoutLaw
from hypothesis import strategies as st
from torch import nn

from layers.testing import claims, initial_distribution
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


class Ignoring(Scaled):
    def mix(self, x):
        return Sound.mix(self, x) + self.shift


def ignoring(dim, **options):
    return Ignoring(dim, **options)


@pytest.mark.parametrize("block", [Ignoring, ignoring])
def test_several_values_in_all_must_change_something(block):
    def missed(*values):
        several = [contract(block, arguments=dict(dim=st.integers(2, 4), shift=1.0, **more), twins=[]) for more in values]
        return unexercised_by_any(several, lambda promise: [])

    always = {"shift": "it is always 1.0"}
    idle = "no value of it changes the output or the state"
    assert missed({"scale": 2.0}, {"scale": 3.0}) == always | {"scale": idle}
    assert missed({}, {"scale": 3.0}) == always | {"scale": idle}
    assert missed({}, {"scale": 1.0}) == always | {"scale": "it is always 1.0"}  # its default


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
    with pytest.raises(AssertionError, match=r"no parameter is the first to fit gain\*, scale\*"):
        check(
            "initial_distribution",
            contract(WithoutLaw, holds=[initial_distribution({"*": "why not", "gain*": one, "scale*": one})]),
        )
    with pytest.raises(ValueError, match="scale must have a law or a reason why not"):
        initial_distribution({"scale": " "})


def test_a_stated_law_of_few_values_is_held_by_all_configurations_together(monkeypatch):
    """Of 2 to 4 values each, which show nothing by themselves."""

    def promise(std, **options):
        law = initial_distribution({"linear.bias": lambda a, p: (0.0, std * (1 / (3 * a.dim)) ** 0.5)})
        return contract(Sound, holds=[law], **options)

    check("initial_distribution", promise(1))
    with pytest.raises(AssertionError, match=r"linear.bias, less its mean and over its deviation, has mean"):
        check("initial_distribution", promise(1.5))
    monkeypatch.setattr(claims, "BUILDS", 1)
    with pytest.raises(pytest.fail.Exception, match=r"vacuous: linear.bias: fewer than 64 values"):
        check("initial_distribution", promise(1))


class Inherited(nn.Linear):
    """With torch's law."""


PARTS = [
    lambda dim: Inherited(dim, dim),
    lambda dim: nn.MultiheadAttention(dim, 1),
    lambda dim: nn.TransformerEncoderLayer(dim, 1, 8),
    lambda dim: nn.utils.parametrizations.weight_norm(nn.Linear(dim, dim)),
    lambda dim: nn.utils.parametrizations.spectral_norm(nn.Linear(dim, dim)),
]


class With(Sound):
    def __init__(self, dim, build, gain=1.0):
        super().__init__(dim)
        self.other = build(dim)
        with torch.no_grad():
            for parameter in self.other.parameters():
                parameter.mul_(gain)


@pytest.mark.parametrize("build", PARTS)
def test_modules_of_torch_have_its_law_whoever_holds_or_inherits_them(build):
    promise = contract(With, arguments=dict(dim=st.integers(3, 4), build=st.just(build)), twins=[], invalid=[])
    check("initial_values", promise)
    with pytest.raises(AssertionError, match="neither torch's law"):
        check("initial_values", replace(promise, arguments={**promise.arguments, "gain": 0.7}))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_and_those_with_a_weight_norm_that_is_a_hook():
    build = lambda dim: nn.utils.weight_norm(nn.Linear(dim, dim))  # noqa: E731
    check("initial_values", contract(With, arguments=dict(dim=st.integers(3, 4), build=st.just(build)), twins=[], invalid=[]))


def test_a_law_takes_enough_values_to_tell_it_by():
    build = lambda dim: nn.Linear(1, 1)  # noqa: E731
    promise = contract(With, arguments=dict(dim=st.integers(3, 4), build=st.just(build)), twins=[], invalid=[])
    check("initial_values", promise)  # of 300 builds
    with pytest.raises(pytest.fail.Exception, match=r"vacuous: other.weight, .*bias: too few values"):
        check("initial_values", replace(promise, model=True))
