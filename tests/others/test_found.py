"""What the page shows of each finding runs, and the page is up to date."""

from __future__ import annotations

import re

import pytest
import test_torch
from findings import Finding, watch
from table import FINDINGS, LIBRARIES, PAGE, contracts, page

from layers.testing import Mismatch, Property
from layers.testing.examples import promised
from layers.testing.verdicts import Vacuous

FOUND: list = []


@pytest.mark.parametrize(
    "finding", FINDINGS, ids=lambda finding: f"{finding.contract}-{finding.property.split()[0]}".replace(" ", "-")
)
def test_the_lines_that_show_it_run(finding):
    exec(compile(finding.shown, finding.contract, "exec"), {})


def test_findings_name_contracts_properties_and_threads():
    for module in LIBRARIES:
        names = {contract.name for contract in contracts(module)}
        assert {finding.contract for finding in module.FOUND} <= names, module.LIBRARY
    for finding in FINDINGS:
        assert finding.what.endswith("."), finding.contract
        assert all(re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", thread) for thread in finding.seen), finding.contract


def test_there_are_at_least_25_blocks():
    assert sum(len(contracts(module)) for module in LIBRARIES) >= 25


def test_the_page_is_up_to_date():
    """Written by `PYTHONPATH=.:tests/others python -m table`."""
    assert PAGE.read_text(encoding="utf-8") == page()


def watched(contract, name, where):
    prop, twin = next((prop, twin) for found, prop, twin in promised(contract) if found == name)
    finding = Finding(contract.name, name, "some", "It differs.", "", where)
    return watch(contract, prop, twin, [finding], 4)


def test_a_defect_that_is_gone_is_told():
    with pytest.raises(AssertionError, match="Linear no longer breaks shape"):
        watched(test_torch.linear, "shape", lambda case: True)


def test_a_defect_under_other_options_is_red():
    assert watched(test_torch.batch_norm, "batch_rows", lambda case: not case.arguments.track_running_stats)
    with pytest.raises(Mismatch):
        watched(test_torch.batch_norm, "batch_rows", lambda case: case.arguments.track_running_stats)


def alone(where=lambda case: True, what="It differs."):
    return Finding("some", "a", "some", what, "", where)


def test_a_defect_that_is_gone_is_told_beside_another():
    prop = next(prop for name, prop, _ in promised(test_torch.batch_norm) if name == "batch_rows")
    there = alone(lambda case: not case.arguments.track_running_stats)
    gone = alone(lambda case: case.arguments.affine, "It is gone.")
    with pytest.raises(AssertionError, match=r"no longer breaks batch_rows \(some\): It is gone"):
        watch(test_torch.batch_norm, prop, None, [there, gone], 4)
    with pytest.raises(AssertionError, match="no configuration is of it alone"):
        watch(test_torch.batch_norm, prop, None, [there, alone(there.where)], 4)


def test_an_error_of_another_kind_is_red():
    def check(case):
        raise TypeError("of the check itself")

    with pytest.raises(TypeError, match="of the check itself"):
        watch(test_torch.linear, Property("a", check), None, [alone()], 4)


def lacking(case):
    raise RuntimeError("derivative for aten::some is not implemented")


def vacuous(case):
    return Vacuous("nothing is hidden")


@pytest.mark.parametrize("check", [lacking, vacuous])
def test_what_cannot_fail_shows_nothing(check):
    """Neither that a defect is there nor that it is gone."""
    with pytest.raises(AssertionError, match=r"Linear a cannot show it \(some\): none of \d+ configurations could have failed"):
        watch(test_torch.linear, Property("a", check), None, [alone()], 4)


def test_others_that_cannot_fail_are_not_green():
    def check(case):
        if case.arguments.bias:
            raise Mismatch("differs")
        return vacuous(case)

    with pytest.raises(AssertionError, match=r"Linear a is vacuous without the findings: none of \d+"):
        watch(test_torch.linear, Property("a", check), None, [alone(lambda case: case.arguments.bias)], 4)
