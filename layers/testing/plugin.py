"""The pytest plugin: every `Contract` at the top level of a test module becomes tests `path::Block::property[twin]`.

Examples follow hypothesis's own profiles: ``--hypothesis-profile dev`` (8 examples), ``ci`` (20, always the same ones) or
``thorough`` (200); properties that compile or export draw fewer. ``--reproduce BLOB`` runs the one configuration that a failure
has printed.
"""

from __future__ import annotations

import datetime
import re
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from layers.testing.contract import Case, Contract, Twin
from layers.testing.deployment import THOROUGH
from layers.testing.properties import GENERIC, Property

_COMMON: dict[str, Any] = dict(deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
settings.register_profile("dev", max_examples=8, **_COMMON)
settings.register_profile("ci", max_examples=20, derandomize=True, database=None, **_COMMON)
settings.register_profile("thorough", max_examples=THOROUGH, **_COMMON)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("contracts").addoption(
        "--reproduce", metavar="BLOB", help="run only the configuration that a failed contract has printed"
    )


def pytest_pycollect_makeitem(collector: Any, name: str, obj: object) -> Any:
    if isinstance(obj, Contract) and isinstance(collector, pytest.Module):
        return ContractCollector.from_parent(collector, name=obj.name, contract=obj)
    return None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    tally: dict[str, list[str]] = getattr(config, "_contracts", {})
    if tally:
        out, failing = tally["without"], tally["failing"]
        terminalreporter.write_sep("-", "contracts")
        terminalreporter.write_line(
            f"{len(set(tally['blocks']))} blocks, {len(tally['properties'])} properties, "
            f"{len(out)} opted out, {len(failing)} known failures"
        )
        for line in out + failing:
            terminalreporter.write_line(f"  {line}")


MACHINERY = re.compile(r"[\\/](_pytest|pluggy|hypothesis)[\\/]|testing[\\/]plugin\.py$")
"""Files whose frames a traceback leaves out."""


class ContractCollector(pytest.Collector):
    """One block: collects a test of every property, the generic ones and the claimed."""

    def __init__(self, contract: Contract, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.contract = contract

    def collect(self) -> Iterator[pytest.Item]:
        contract = self.contract
        properties = [p for p in [*GENERIC, *contract.holds] if p.applies(contract)]
        known = {p.name for p in properties}
        if unknown := sorted((contract.without.keys() | contract.failing.keys()) - known):
            raise self.CollectError(
                f"{contract.name}: no property named {', '.join(unknown)}; there are {', '.join(sorted(known))}"
            )
        for prop in properties:
            twins: list[Twin | None] = list(contract.twins) or [None]
            if not prop.each_twin:
                twins = [None]
            for twin in twins:
                if twin is None and prop.each_twin and prop.name in NEEDS_TWIN:
                    continue
                name = f"{prop.name}[{twin.name}]" if twin else prop.name
                yield PropertyItem.from_parent(self, name=name, contract=contract, prop=prop, twin=twin)


NEEDS_TWIN = ("forward", "backward", "weights")
"""Properties that compare with a twin and nothing else; the precision ones fall back on rounding theory."""


class PropertyItem(pytest.Item):
    """One property of one block: a hypothesis test over drawn configurations."""

    def __init__(self, contract: Contract, prop: Property, twin: Twin | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.contract, self.prop, self.twin = contract, prop, twin
        self.failing = contract.failing.get(prop.name)
        self.note("blocks", contract.name)
        self.note("properties", self.nodeid)
        if reason := contract.without.get(prop.name):
            self.note("without", f"{self.nodeid}: {reason}")
            self.add_marker(pytest.mark.skip(reason=f"opted out: {reason}"))
        if self.failing:
            k = self.failing
            self.note("failing", f"{self.nodeid}: {k.reason} ({k.link}, {k.version}, until {k.expires})")

    def note(self, what: str, line: str) -> None:
        if not hasattr(self.config, "_contracts"):
            self.config._contracts = {"blocks": [], "properties": [], "without": [], "failing": []}  # type: ignore[attr-defined]
        self.config._contracts[what].append(line)  # type: ignore[attr-defined]

    def runtest(self) -> None:
        run = examples(self.contract, self.prop, self.twin, self.config.getoption("--reproduce"))
        if self.failing is None:
            return run()
        if datetime.date.today() >= self.failing.expires:
            pytest.fail(f"known failure expired on {self.failing.expires}: {self.failing.reason}", pytrace=False)
        try:
            run()
        except Exception:
            pytest.xfail(self.failing.reason)
        pytest.fail(f"known failure passes, remove it: {self.failing.reason}", pytrace=False)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The message, the smallest configuration, the line that repeats it; the traceback below for what is not a mismatch."""
        notes = "\n".join(getattr(excinfo.value, "__notes__", []))
        blob = re.search(r"@reproduce_failure\([^,]+, b?['\"](.+?)['\"]\)", notes)
        lines = [f"{self.contract.name} fails {self.prop.name}: {self.prop.check.__doc__ or ''}".strip()]
        if not isinstance(excinfo.value, AssertionError):
            frames = traceback.extract_tb(excinfo.tb)
            lines += traceback.format_list([f for f in frames if not MACHINERY.search(f.filename)])
        lines += traceback.format_exception_only(type(excinfo.value), excinfo.value.with_traceback(None))[:1]
        if case := re.search(r"case=(.*?),?\n\)", notes, re.DOTALL):
            lines.append(f"smallest configuration: {case[1]}")
        if blob:
            lines.append(f"again: pytest '{self.nodeid}' --reproduce '{blob[1]}'")
        return "\n".join(lines)

    def reportinfo(self) -> tuple[Any, int, str]:
        return self.path, 0, f"{self.contract.name}::{self.name}"


def examples(
    contract: Contract, prop: Property, twin: Twin | None, blob: str | None = None, shrink: bool = True
) -> Callable[[], None]:
    """A fresh hypothesis test of one property. It fails too if no example could have shown a failure.

    blob: repeats the configuration that a failure has printed. shrink: look for a smaller one that fails too.
    """
    shown: list[bool] = []

    @given(case=contract.cases())
    def check(case: Case) -> None:
        result = prop.check(case, twin) if prop.each_twin else prop.check(case)
        shown.append(result is not False)

    if blob:
        check = hypothesis.reproduce_failure(hypothesis.__version__, blob.encode())(check)
    budget = settings.default.max_examples if settings.default else 100
    cost = prop.cost * (4 if contract.model else 1)
    skipped = {Phase.explain} | (set() if shrink else {Phase.shrink})  # explaining traces every line, compilers' too
    phases = [phase for phase in settings().phases if phase not in skipped]
    check = settings(max_examples=max(1, budget // cost), phases=phases, **_COMMON)(check)

    def run() -> None:
        check()
        if not any(shown):
            pytest.fail(
                f"{contract.name} {prop.name} is vacuous: none of {len(shown)} configurations could have failed",
                pytrace=False,
            )

    return run
