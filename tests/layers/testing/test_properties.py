"""The suite is tested too: for every property a toy block that must fail it, and one that must pass them all."""

from __future__ import annotations

import pytest
from broken_blocks import (
    AlwaysSingle,
    AssumesContiguous,
    BakesBatch,
    BakesValues,
    BreaksGraph,
    Broadcasting,
    Cancelling,
    CancellingOnlyInHalf,
    Centred,
    ChecksLargeSizesOnly,
    Counting,
    DoubledGradient,
    DrawsInVain,
    EatsEmptiness,
    ExtraParameter,
    Forgetful,
    Fused,
    HiddenInAList,
    IgnoresInput,
    InPlace,
    LooksAtValues,
    Masked,
    NamesNoAxis,
    NamesNoInput,
    Noisy,
    Normalising,
    OneForAllTimes,
    OtherError,
    Pair,
    Raising,
    RaisingProperty,
    RaisingRepr,
    SecretDropout,
    SharedCopy,
    Silenced,
    SlightlyScaled,
    Sound,
    TableOnCpu,
    Transposed,
    Two,
    UnbuiltTable,
    UncheckedArgument,
    UncheckedInput,
    Unused,
    WritesOver,
    WritesOverWithoutGradients,
    WrongBackward,
    WrongForwardWhileTraining,
    WrongTwice,
    WrongWhereGraphsAreKept,
    check,
    contract,
)
from broken_draws import DRAWING, OPTIONS, SOUND, CoarseInHalf, Defaulting, DropsFromTheEnd
from torch import nn

from layers.testing import (
    GENERIC,
    Twin,
    mask,
    tensor,
)
from layers.weights import WeightMap

FAILS: dict[str, list[type]] = {
    "smoke": [Raising],
    "shape": [Transposed, AlwaysSingle],
    "forward": [SlightlyScaled, Transposed],
    "backward": [DoubledGradient, WrongBackward],
    "weights": [ExtraParameter],
    "float32": [Cancelling],
    "bfloat16": [Cancelling, CancellingOnlyInHalf],
    "autocast": [CancellingOnlyInHalf],
    "gradcheck": [WrongBackward, DoubledGradient],
    "second_derivatives": [WrongTwice, Fused, WrongWhereGraphsAreKept],
    "forward_derivatives": [WrongTwice, Fused, WrongForwardWhileTraining],
    "parameters_used": [Unused, Silenced, HiddenInAList],
    "per_sample_gradients": [LooksAtValues],
    "deterministic": [Noisy],
    "no_global_random": [Noisy, DrawsInVain],
    "train_eval": [SecretDropout],
    "batch_rows": [Centred, IgnoresInput],
    "inputs_unchanged": [InPlace],
    "non_contiguous": [AssumesContiguous],
    "history_independent": [Counting],
    "empty_batch": [EatsEmptiness],
    "finite": [Normalising],
    "state_round_trip": [Forgetful, SharedCopy],
    "meta_device": [UnbuiltTable],
    "meta_forward": [TableOnCpu],
    "inspection": [RaisingProperty, RaisingRepr],
    "hooks": [WritesOver, WritesOverWithoutGradients],
    "trace": [BakesValues],
    "export": [BakesBatch],
    "compile": [BakesBatch, BreaksGraph],
    "bad_argument": [UncheckedArgument],
    "bad_input": [UncheckedInput],
    "sizes_agree": [Broadcasting, ChecksLargeSizesOnly, NamesNoAxis, NamesNoInput, OtherError],
    **DRAWING,
}

GOOD: dict[str, type] = {"sizes_agree": Pair, **SOUND}
"""A block that passes, where it is not `Sound`."""


def test_every_property_has_a_block_that_fails_it():
    assert FAILS.keys() == {p.name for p in GENERIC}


@pytest.mark.parametrize("name", [p.name for p in GENERIC])
def test_a_sound_block_passes(name):
    check(name, contract(GOOD.get(name, Sound), **OPTIONS.get(name, {})))


@pytest.mark.parametrize(("name", "block"), [(name, block) for name, blocks in FAILS.items() for block in blocks])
def test_a_broken_block_fails(name, block):
    with pytest.raises((AssertionError, ValueError, RuntimeError, TypeError, pytest.fail.Exception)) as caught:
        check(name, contract(block, **OPTIONS.get(name, {})))
    assert "Unsatisfi" not in repr(caught.value)


def test_sizes_agree_is_for_blocks_whose_inputs_share_an_axis():
    prop = next(p for p in GENERIC if p.name == "sizes_agree")
    assert prop.applies(contract(Pair))
    assert not prop.applies(contract(Sound))
    assert not prop.applies(contract(Pair, inputs=lambda a: dict(x=tensor("batch time dim"), y=tensor("rows 1 depth"))))


@pytest.mark.parametrize(("y", "block", "sound"), [
    (tensor("batch 1 dim"), OneForAllTimes, True),
    (mask("batch time dim"), Masked, True),
    (tensor("batch time dim"), Masked, False),
])  # fmt: skip
def test_an_input_may_broadcast_where_the_contract_says_so(y, block, sound):
    promise = contract(block, inputs=lambda a: dict(x=tensor("batch time dim", dim=a.dim), y=y))
    if sound:
        return check("sizes_agree", promise)
    with pytest.raises(AssertionError, match="batch of x 2, of y 1: no error"):
        check("sizes_agree", promise)


@pytest.mark.parametrize("name", ["export", "state_round_trip", "trace"])
def test_a_block_is_called_as_its_contract_says(name):
    check(name, contract(Two, call=lambda m, i: m(i["x"])[0]))


@pytest.mark.parametrize("block", [Sound, *FAILS["gradcheck"]])
def test_gradients_of_a_whole_model_are_checked_too(block):
    """Where all tensors move at once."""
    promise = contract(block, model=True)
    if block is Sound:
        return check("gradcheck", promise)
    with pytest.raises(AssertionError, match="along a direction differ from finite differences"):
        check("gradcheck", promise)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "autocast"])
def test_precision_without_a_twin(name):
    check(name, contract(Sound, twins=[]))
    with pytest.raises(AssertionError):
        check(name, contract(Cancelling, twins=[]))


def test_half_precision_without_a_twin_is_held_to_what_its_operations_round():
    """5 % of the output are more than a few operations come to, and less than their worst case for sums of many."""
    with pytest.raises(AssertionError, match="that of rounding"):
        check("bfloat16", contract(CoarseInHalf, twins=[]))


def test_the_same_law_may_come_from_other_numbers():
    for name in ("random_law", "random_rows"):
        check(name, contract(DropsFromTheEnd, **OPTIONS[name]))


def test_a_twin_must_draw():
    """And a block must, where its contract says so."""
    still = dict(OPTIONS["random_law"], twins=[Twin("own", build=lambda a: DropsFromTheEnd(a.dim), weights=WeightMap(("", "")),
                                                    call=lambda m, i: m(i["x"]))])  # fmt: skip
    with pytest.raises(AssertionError, match="no twin of another class draws anything"):
        check("random_law", contract(DropsFromTheEnd, **still))
    with pytest.raises(pytest.fail.Exception, match="vacuous"):
        check("random_rows", contract(Sound, stochastic=lambda a: True))


def test_defaults_have_a_source():
    for promised, words in (({"eps": (1e-6, " ")}, "must name the paper"), ({"rate": (1, "paper")}, "has no argument rate")):
        with pytest.raises(AssertionError, match=words):
            check("defaults", contract(Defaulting, defaults=promised))


def test_a_claimed_difference_must_show():
    with pytest.raises(pytest.fail.Exception, match="vacuous"):
        check("train_eval", contract(Sound, trains_differently=lambda a: True))
    check("train_eval", contract(SecretDropout, trains_differently=lambda a: True))


class ConstantWhereNarrow(Sound):
    def mix(self, x):
        return super().mix(x) * float(x.shape[-1] > 2)


def test_few_examples_that_show_nothing_are_followed_by_more():
    """The first one drawn is the simplest, and of a costly property the only one."""
    check("forward_derivatives", contract(ConstantWhereNarrow))
    with pytest.raises(pytest.fail.Exception, match=r"vacuous: none of [2-9]"):
        check("forward_derivatives", contract(ConstantWhereNarrow, arguments=dict(dim=2)))


def test_running_statistics_are_compared():
    """A batch norm of another momentum moves its running statistics differently, and nothing else."""

    class Norm(nn.BatchNorm1d):
        def __init__(self, dim):
            super().__init__(dim, momentum=0.2)

    twin = Twin("torch", build=lambda a: nn.BatchNorm1d(a.dim), weights=WeightMap(("", "")), call=lambda m, i: m(i["input"]))
    promise = contract(
        Norm,
        inputs=lambda a: dict(input=tensor("batch dim", dim=a.dim)),
        outputs=lambda a, s: ("batch", a.dim),
        twins=[twin],
        trains_differently=lambda a: True,
    )
    with pytest.raises(AssertionError, match="running_mean"):
        check("forward", promise)
    check("backward", promise)


def test_hidden_parameters_are_named():
    with pytest.raises(AssertionError, match=r"scales\[0\]: not among the parameters"):
        check("parameters_used", contract(HiddenInAList))


class Slotted:
    __slots__ = ("__hidden", "value")

    def __init__(self, value):
        self.value, self.__hidden = value, value


class GivesSlots(Sound):
    def forward(self, x):
        return Slotted(super().forward(x))


class GivesNoisySlots(Noisy):
    def forward(self, x):
        return Slotted(super().forward(x))


def test_what_stands_in_slots_is_looked_at():
    shape = ("batch", "time", "dim")
    promise = dict(twins=[], outputs=lambda a, s: {"value": shape, "__hidden": shape})
    for name in ("shape", "deterministic", "gradcheck"):
        check(name, contract(GivesSlots, **promise))
    with pytest.raises(AssertionError):
        check("deterministic", contract(GivesNoisySlots, **promise))
