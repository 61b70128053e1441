"""The pytest plugin: every `Contract` at the top level of a test module becomes tests `path::Block::property[twin]`.

Examples follow hypothesis's own profiles: ``--hypothesis-profile dev`` (8 examples), ``few`` (8, always the same ones), ``ci``
(20, always the same) or ``thorough`` (200); properties that compile or export draw fewer. ``-m quick`` checks shapes, equality
with the twins, gradients and weights on three examples. ``--reproduce BLOB`` runs the one configuration that a failure has
printed. ``--contracts-only`` leaves all other tests out, ``--contract-seconds N`` bounds the time of each contract, and
``--contract-arguments`` asks each for the arguments that it never tries. ``--contract-report report.html`` writes a page of what
became of each property.

Every pytest session of the environment loads this file, so it imports neither torch nor hypothesis before they are needed.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("contracts")
    group.addoption("--reproduce", metavar="BLOB", help="run only the configuration that a failed contract has printed")
    group.addoption("--contracts-only", action="store_true", help="run the tests that contracts make, and no others")
    group.addoption(
        "--contract-arguments", action="store_true", help="a test `exercised` of each contract: what arguments it never tries"
    )
    group.addoption("--contract-report", metavar="FILE", help="write an HTML page: blocks by properties, reasons and seconds")
    group.addoption(
        "--contract-seconds", type=float, metavar="N",
        help="after N seconds of a contract draw no more examples, and skip those of its tests that have not begun",
    )  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "quick: shapes, equality with the twins, gradients and weights, on a few examples")
    if path := report_path(config):
        require_writable(path)
    if "hypothesis" in sys.modules or config.getoption("--hypothesis-profile", None):
        import_module("layers.testing.profiles")  # before hypothesis loads the one that was asked for


def pytest_pycollect_makeitem(collector: Any, name: str, obj: object) -> Any:
    kit = sys.modules.get("layers.testing.contract")  # without it nothing can be a Contract
    if kit is None or not isinstance(obj, kit.Contract) or not isinstance(collector, pytest.Module):
        return None
    from layers.testing.items import ContractCollector

    return ContractCollector.from_parent(collector, name=obj.name, contract=obj)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--contracts-only"):
        kit = sys.modules.get("layers.testing.items")  # without it there are none
        others = [item for item in items if kit is None or not isinstance(item, kit.PropertyItem)]
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=others)


def report_path(config: pytest.Config) -> Path | None:
    name = config.getoption("--contract-report", None)
    return config.invocation_params.dir / name if name else None


def require_writable(path: Path) -> None:
    """As far as one can tell before the run."""
    if path.is_dir():
        raise pytest.UsageError(f"--contract-report must be a file to write, {path} is a folder")
    there = next(found for found in (path, *path.parents) if found.exists())
    if there != path and not there.is_dir():
        raise pytest.UsageError(f"--contract-report {path} cannot be written: {there} is no folder")
    if not os.access(there, os.W_OK):
        raise pytest.UsageError(f"--contract-report {path} cannot be written: there is no permission for {there}")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many promises were checked, which were not, and where the time went; and the page, if it was asked for."""
    if path := report_path(terminalreporter.config):
        from layers.testing.page import page, told_of

        errors = [r for r in terminalreporter.stats.get("error", ()) if isinstance(r, pytest.CollectReport)]
        source = page(told_of(terminalreporter.stats), {r.nodeid: r.longreprtext for r in errors})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, encoding="utf-8")
            terminalreporter.write_line(f"contracts: {path}")
        except OSError as error:
            terminalreporter.write_line(f"contracts: the page was not written: {error}")
    seconds: dict[str, float] = defaultdict(float)
    blocks, tests, without, failing, late = set(), set(), set(), set(), set()
    for report in (r for reports in terminalreporter.stats.values() for r in reports if isinstance(r, pytest.TestReport)):
        told: Any = dict(report.user_properties).get("contract")
        if told:
            blocks.add(told["block"])
            tests.add(told["test"])
            without.add(told["without"])
            failing.add(told["failing"])
            if told["late"]:
                late.add(told["test"])
            seconds[told["property"]] += report.duration
    if not tests:
        return
    out, known = sorted(without - {""}), sorted(failing - {""})
    terminalreporter.write_sep("-", "contracts")
    terminalreporter.write_line(
        f"{len(blocks)} blocks, {len(tests)} properties, {len(out)} opted out, {len(known)} known failures"
    )
    if late:
        terminalreporter.write_line(f"{len(late)} properties were not checked for lack of time")
    for line in out + known:
        terminalreporter.write_line(f"  {line}")
    longest = sorted(seconds.items(), key=lambda item: -item[1])
    terminalreporter.write_line("seconds by property: " + ", ".join(f"{name} {spent:.1f}" for name, spent in longest))
