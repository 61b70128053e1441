"""What the page shows of each finding runs, and the page is up to date."""

from __future__ import annotations

import re

import pytest
import test_torch
from findings import Finding, watch
from table import FINDINGS, LIBRARIES, PAGE, contracts, page

from layers.testing import Mismatch
from layers.testing.examples import promised

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
