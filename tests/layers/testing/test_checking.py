"""`Contract.check`, what failures and skipped properties say, and what is drawn and left alone."""

from __future__ import annotations

import datetime
from dataclasses import replace

import pytest
import torch
from broken_blocks import DoubledGradient, Raising, SlightlyScaled, Sound, WrongBackward, check, contract
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn

from layers.testing import GENERIC, KnownFailure, Twin, exercised, fill, leaves, mask, profiles, require_equal, tensor
from layers.testing.examples import cause
from layers.testing.exercise import unexercised
from layers.testing.items import LINES, sentence, shortened
from layers.weights import WeightMap


def told(promise, *only, **options):
    """Name -> how and why."""
    return {o.name: (o.how, o.message) for o in promise.check(only=only, **{"examples": 2, **options})}


def test_a_report_says_what_became_of_each_property():
    report = contract(SlightlyScaled, without={"finite": "not asked for"}).check(only=["shape", "forward", "finite"], examples=2)
    assert [(o.name, o.how) for o in report] == [("shape", "passed"), ("forward[torch]", "failed"), ("finite", "skipped")]
    assert not report
    assert "1 passed, 1 failed, 1 skipped" in repr(report)
    assert "smallest configuration: SlightlyScaled(dim=" in report.failed()[0].message
    assert "skipped  finite (0.0 s): opted out: not asked for" in repr(report)
    assert contract(Sound).check(only=["shape"], examples=2)


def test_a_failure_is_told_whatever_another_plugin_makes_hypothesis_print(monkeypatch):
    """That of schemathesis replaces the printer by one that prints nothing."""
    monkeypatch.setattr("hypothesis.core.RepresentationPrinter.pretty", lambda *given, **options: None)
    how, message = told(contract(SlightlyScaled), "forward")["forward[torch]"]
    assert how == "failed"
    assert "smallest configuration: SlightlyScaled(dim=" in message


def test_a_known_failure_is_skipped_until_it_passes():
    known = {"shape": KnownFailure("bent", "pytorch#1", "2.6", datetime.date(2999, 1, 1))}
    assert told(contract(Sound, failing=known), "shape")["shape"] == ("failed", "known failure passes, remove it: bent")
    known = {"forward": known["shape"]}
    assert told(contract(SlightlyScaled, failing=known), "forward")["forward[torch]"] == ("skipped", "known failure: bent")
    known = {"forward": replace(known["forward"], expires=datetime.date(2020, 1, 1))}
    found = told(contract(SlightlyScaled, failing=known), "forward")["forward[torch]"]
    assert found == ("failed", "known failure expired on 2020-01-01: bent")


def test_no_examples_are_no_check():
    for examples in (0, -1):
        with pytest.raises(ValueError, match=f"examples must be at least 1, got {examples}"):
            contract(Sound).check(examples=examples)


def test_unknown_properties_are_refused():
    with pytest.raises(ValueError, match="only must name properties, got backwards"):
        contract(Sound).check(only=["backwards"])
    with pytest.raises(ValueError, match="no property named gradchek"):
        contract(Sound, without={"gradchek": "typo"}).check()
    assert contract(Sound, without={"exercised": "of another version"}).check(only=["shape"], examples=1)


def refuse(a):
    raise RuntimeError("no such reference")


@pytest.mark.parametrize(("promise", "cause"), [
    (contract(Raising), "TypeError: no such thing"),
    (contract(Sound, arguments=dict(dim=0)), "ValueError: dim must be positive, got 0"),
    (contract(Sound, twins=[Twin("none", build=refuse)]), "RuntimeError: no such reference"),
    (contract(Sound, inputs=lambda a: dict(x=tensor("b n dim", dim=a.width))), "AttributeError: 'Arguments' object has no"),
])  # fmt: skip
def test_one_cause_is_one_failure(promise, cause):
    found = told(promise)
    assert [name for name, (how, _) in found.items() if how != "skipped"] == ["smoke"]
    assert cause in found["smoke"][1]
    assert all(message.startswith(f"smoke fails: {cause}") for name, (_, message) in found.items() if name != "smoke")
    assert len(found) >= len(GENERIC) - 6


def test_what_is_not_checked_is_not_true():
    """Only what `smoke` reports is skipped in other properties' place."""
    for promise in (contract(Raising), contract(Raising, without={"smoke": "it is slow"})):
        report = promise.check(only=["shape", "finite"], examples=1)
        assert [o.how for o in report] == ["failed", "failed"]
    assert not contract(Sound, twins=[]).check(only=["forward"])
    assert not contract(Sound, without={"shape": "not asked for"}).check(only=["shape"])


class Choosy(Sound):
    refused = 0

    def mix(self, x):
        if x.shape[-1] == self.refused:
            raise TypeError("no such thing")
        return super().mix(x)


def test_smoke_fails_where_others_are_skipped_for_it(monkeypatch):
    promise = contract(Choosy, arguments=dict(dim=st.integers(2, 200)))
    monkeypatch.setattr(Choosy, "refused", promise.example().arguments.dim)
    assert cause(promise) == "TypeError: no such thing"
    with pytest.raises(TypeError, match="no such thing"):
        check("smoke", promise)


def test_time_is_bounded():
    found = told(contract(Sound), "shape", "smoke", seconds=0)
    assert {how for how, _ in found.values()} == {"skipped"}
    assert found["shape"][1] == "the 0 seconds are over"


def test_without_a_profile_few_examples_are_drawn():
    """Not hypothesis's own hundred."""
    loaded = settings._current_profile
    try:
        settings.load_profile("default")
        assert profiles.budget() == profiles.DEV
        settings.load_profile("thorough")
        assert profiles.budget() == profiles.THOROUGH
    finally:
        settings.load_profile(loaded)


def test_what_is_vacuous_says_what_to_change():
    promise = contract(
        Sound, inputs=lambda a: dict(x=tensor("rows time dim", dim=a.dim)), outputs=lambda a, s: ("rows", "time", a.dim)
    )
    found = told(promise, "batch_rows", "empty_batch", "export", "per_sample_gradients", "compile")
    assert len(found) == 5
    for how, message in found.values():
        assert how == "failed"
        assert "no input has a batch axis: call the axis `b` or `batch`" in message
    assert "`foreign=True`" in told(contract(Sound, invalid=[]), "bad_argument")["bad_argument"][1]
    free = contract(Sound, arguments=dict(dim=2), inputs=lambda a: dict(x=tensor("batch time dim", dim=st.just(2))))
    assert "no axis of an input has a fixed size" in told(free, "bad_input")["bad_input"][1]


@pytest.mark.parametrize("block", [WrongBackward, DoubledGradient])
def test_gradcheck_names_the_tensor_and_shows_no_jacobian(block):
    how, message = told(contract(block), "gradcheck")["gradcheck"]
    assert how == "failed"
    assert "gradient of output 0 by linear.weight: along a drawn direction" in message
    assert len(message) < 300


def test_long_messages_are_shortened():
    assert shortened("one\ntwo\n") == "one\ntwo"
    text = shortened("\n".join(map(str, range(400))))
    assert text.splitlines()[0] == "0"
    assert "(388 lines left out)" in text
    assert text.splitlines()[-1] == "399"
    assert len(text.splitlines()) == LINES + 1


def test_every_property_says_itself_in_a_sentence():
    for prop in GENERIC:
        assert sentence(prop).endswith("."), prop.name
        assert len(sentence(prop)) < 250, prop.name


# ---------------------------------------------------------------------------------------------------- what is never tried


class Options(Sound):
    def __init__(self, dim, bias=True, dropout=0.0, std=1.0, spare=1, eps=1e-5):
        super().__init__(dim)
        self.dropout, self.bias = nn.Dropout(dropout), bias
        nn.init.normal_(self.linear.weight, std=std)

    def forward(self, x, y=None, mask=None, times=1, unused=0, flag=False):
        x = self.dropout(super().forward(x)) + self.bias * self.linear.bias
        return times * (x if mask is None else x * mask)


def options(**more):
    return contract(
        Options,
        arguments=dict(
            dim=2,
            bias=st.booleans(),
            dropout=st.sampled_from([0.0, 0.5]),
            std=st.sampled_from([1.0, 2.0]),
            spare=st.integers(1, 3),
        ),
        inputs=lambda a: dict(
            x=tensor("batch time dim", dim=a.dim),
            times=st.integers(2, 4),
            unused=st.integers(1, 4),
            mask=mask("batch time 1"),
        ),
        twins=[],
        **more,
    )


def test_what_a_contract_never_tries():
    """Dropout shows in training, and a scale of initial values in the fresh state."""
    assert unexercised(options(), given_by_claims=["flag"]) == {
        "dim": "it is always 2",
        "spare": "no value of it changes the output or the state",
        "eps": "the constructor is never given it",
        "y": "`forward` is never given it",
        "unused": "no value of it changes the output",
    }


class Sometimes(Sound):
    def forward(self, x, mask=None, most=1, table=None):
        if most > self.linear.in_features:
            raise ValueError("most must be dim or less")
        x = super().forward(x)[..., :most]
        x = x if table is None else x * table
        return x if mask is None else x * mask


def test_inputs_may_be_there_in_some_cases_only():
    """A value of another case that does not fit is another value; tensors that a strategy draws are exchanged."""
    promise = contract(
        Sometimes,
        arguments=dict(dim=st.integers(2, 4), _masked=st.booleans()),
        inputs=lambda a: dict(
            x=tensor("batch time dim", dim=a.dim),
            mask=mask("batch time 1") if a._masked else None,
            most=st.integers(1, a.dim),
            table=st.integers(1, 9).map(torch.tensor),
        ),
    )
    assert unexercised(promise) == {}


def test_arguments_are_excused_with_a_reason():
    excused = dict.fromkeys(("dim", "spare", "eps", "y", "unused", "flag"), "of another version")
    assert told(options(holds=[exercised(**excused)]), "exercised")["exercised"] == ("passed", "")
    how, message = told(options(holds=[exercised(**excused, x="why not")]), "exercised")["exercised"]
    assert (how, message) == ("failed", "Mismatch: excused, and exercised all the same: x")
    how, message = told(options(holds=[exercised()]), "exercised")["exercised"]
    assert "eps: the constructor is never given it; y: `forward` is never given it" in message
    with pytest.raises(ValueError, match="eps must be excused with a reason"):
        exercised(eps=" ")


# -------------------------------------------------------------------------------------------------------- what is drawn


class Tables(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.scale = nn.Parameter(torch.ones(3))
        self.phase = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
        self.register_buffer("causal", torch.tril(torch.ones(3, 3)))
        self.register_buffer("additive", torch.full((3, 3), -torch.inf).triu(1))
        self.register_buffer("least", torch.full((3, 3), torch.finfo(torch.float32).min).triu(1).double())  # as in a contract
        self.register_buffer("frequencies", torch.linspace(0.1, 1, 3))
        self.register_buffer("codes", torch.zeros(3, 2))


def drawn(**options):
    """Names of what has been drawn."""
    module, before = Tables(), Tables().state_dict()
    fill(module, torch.Generator().manual_seed(0), **options)
    return {name for name, x in module.state_dict().items() if not torch.equal(x, before[name])}


def test_masks_are_left_alone_and_zeros_are_not():
    statistics = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    parameters = {"norm.weight", "norm.bias", "scale", "phase"}
    assert drawn() == parameters | statistics | {"frequencies", "codes"}
    assert drawn(tables=False) == parameters | statistics
    assert drawn(skip=["norm.*", "frequencies"]) == {"scale", "phase", "codes"}
    module = fill(Tables(), torch.Generator().manual_seed(0))
    assert module.phase.imag.abs().min() > 0


def test_a_contract_says_what_is_left_alone():
    case = contract(Sound, keeps=["*.bias"]).example()
    assert torch.equal(case.block().linear.bias, case.new().linear.bias.double())
    assert not torch.equal(case.block().linear.weight, case.new().linear.weight.double())


def test_tables_of_our_own_are_neither_exported_nor_imported():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.register_buffer("table", torch.ones(2))

    plan, ours = WeightMap(("linear", "fc"), own=["table"]), Own()
    assert plan.export(ours).keys() == {"fc.weight", "fc.bias"}
    plan.load(ours, {"fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)})
    assert torch.equal(ours.table, torch.ones(2))
    assert not ours.linear.weight.any()
    with pytest.raises(ValueError, match="unmapped: table"):
        WeightMap(("linear", "fc")).export(ours)
    with pytest.raises(ValueError, match="missing: table"):
        WeightMap(("linear", "fc")).load(ours, plan.export(ours))


# ----------------------------------------------------------------------------------------------------------- trees of tensors


def test_leaves_of_objects_go_by_their_attributes():
    class Cache:
        def __init__(self):
            self.keys, self.length, self.layers = torch.zeros(2), 3, [torch.ones(1), None]
            self.myself = self

    assert [name for name, _ in leaves({"a": (Cache(), 1.5)})] == ["output.a[0].keys", "output.a[0].layers[0]"]
    assert list(leaves(None)) == []
    for wrong in (1.5, "text", print):
        with pytest.raises(TypeError, match="output must be a tensor or nested"):
            list(leaves(wrong))


def test_complex_numbers_are_compared_in_both_parts():
    x = torch.complex(torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    require_equal(x, x.clone(), 0)
    require_equal(x, x * (1 + 1e-15j), 1e-14)
    with pytest.raises(AssertionError, match=r"error 1\.41e-03.*worst at \(0, 1\)"):
        require_equal(x * (1 + 1e-3j), x, 1e-6)
