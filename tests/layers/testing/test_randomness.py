"""What is drawn: blocks and twins that keep their promises in unusual ways must pass."""

from __future__ import annotations

import pytest
from broken_blocks import Sound, check, contract
from broken_draws import (
    Caching,
    Drifting,
    DriftingFromTheEnd,
    Dropping,
    DropsFromTheEnd,
    Embedding,
    Generated,
    GeneratedForTheFirstRow,
    GeneratedFromTheEnd,
    Seen,
    TwiceTheGradientOfTokens,
    drifting,
    dropping,
    embedding,
    function,
    generated,
    in_single,
    of_torch,
    seen,
    stacked,
)

from layers.testing import profiles, randomness
from layers.testing.drawing import Function
from layers.testing.randomness import random_law, random_rows
from layers.testing.verdicts import Vacuous


@pytest.mark.parametrize(("block", "options"), [
    (Dropping, in_single), (DropsFromTheEnd, in_single), (stacked, of_torch), (Function, function),
])  # fmt: skip
def test_a_twin_may_round_and_be_of_the_same_class_of_torch(block, options):
    check("random_law", contract(block, **options))


def test_rows_are_copies_of_one_that_shows_what_is_drawn():
    verdicts = []
    for case in contract(lambda dim: Seen(DropsFromTheEnd(dim)), **seen).examples(12):
        hidden = not case.inputs()["mask"].any()
        verdicts.append((random_law(case), random_rows(case)))
        assert all(isinstance(v, Vacuous) == hidden for v in verdicts[-1]), case
    assert (True, True) in verdicts


def test_a_block_that_draws_nothing_is_not_the_twins_fault():
    with pytest.raises(pytest.fail.Exception, match=r"vacuous.*nothing is drawn"):
        check("random_law", contract(Sound, stochastic=lambda a: True))


def test_training_may_move_the_state():
    check("random_rows", contract(Drifting, **drifting))
    check("random_rows", contract(Caching, **dropping))
    check("random_law", contract(DriftingFromTheEnd, **drifting))


def test_a_generator_may_be_an_input():
    check("random_rows", contract(Generated, **generated))
    check("random_law", contract(GeneratedFromTheEnd, **generated))
    for name in ("random_rows", "random_law"):
        with pytest.raises(AssertionError, match=r"do not draw independently|another law"):
            check(name, contract(GeneratedForTheFirstRow, **generated))


def test_large_rows_are_fewer(monkeypatch):
    largest = []

    class Recording(DropsFromTheEnd):
        def drop(self, x):
            largest.append(x.numel())
            return super().drop(x)

    monkeypatch.setattr(randomness, "LARGEST", 2**14)
    for name in ("random_rows", "random_law"):
        check(name, contract(Recording, **dropping))
    assert 2**13 < max(largest) <= 2**14


@pytest.mark.parametrize("name", ["random_rows", "random_law"])
def test_all_comparisons_together_seldom_fail_by_chance(monkeypatch, name):
    chances, differ = [], randomness.differ

    def counted(left, right, alpha=1e-8, *more):
        chances.append(alpha)
        return differ(left, right, alpha, *more)

    monkeypatch.setattr(profiles, "budget", lambda: profiles.THOROUGH // 2)
    monkeypatch.setattr(randomness, "differ", counted)
    check(name, contract(DropsFromTheEnd, **dropping))
    assert len(chances) > 50
    assert sum(chances) <= 1e-6


def test_gradients_of_parameters_are_compared_while_training():
    """Where no input has a gradient too; those of inputs, and a parameter that has none, are among the broken blocks."""
    check("random_law", contract(Embedding, **embedding))
    with pytest.raises(AssertionError, match=r"gradient for the same random numbers\.0\.weight"):
        check("random_law", contract(TwiceTheGradientOfTokens, **embedding))
