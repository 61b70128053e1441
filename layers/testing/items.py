"""One pytest test for each property of a contract."""

from __future__ import annotations

import datetime
import re
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
from hypothesis import Phase, given, settings

from layers.testing import profiles
from layers.testing.contract import Case, Contract, Twin
from layers.testing.properties import GENERIC, Property

MACHINERY = re.compile(r"[\\/](_pytest|pluggy|hypothesis)[\\/]|testing[\\/]plugin\.py$")
"""Files whose frames a traceback leaves out."""


class ContractCollector(pytest.Collector):
    """One block: collects a test of every property, the generic ones and the claimed."""

    def __init__(self, contract: Contract, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.contract = contract

    def collect(self) -> Iterator[pytest.Item]:
        contract = self.contract
        properties = [*GENERIC, *contract.holds]
        known = {p.name for p in properties}
        if unknown := sorted((contract.without.keys() | contract.failing.keys()) - known):
            raise self.CollectError(
                f"{contract.name}: no property named {', '.join(unknown)}; there are {', '.join(sorted(known))}"
            )
        for prop in (p for p in properties if p.applies(contract)):
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
QUICK = ("shape", "forward", "backward", "weights")
"""Properties that `pytest -m quick` checks."""


class PropertyItem(pytest.Item):
    """One property of one block: a hypothesis test over drawn configurations."""

    def __init__(self, contract: Contract, prop: Property, twin: Twin | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.contract, self.prop, self.twin = contract, prop, twin
        self.failing = contract.failing.get(prop.name)
        if prop.name in QUICK:
            self.add_marker("quick")
        told = {"block": contract.name, "property": prop.name, "test": self.nodeid, "without": "", "failing": ""}
        if reason := contract.without.get(prop.name):
            told["without"] = f"{self.nodeid}: {reason}"
            self.add_marker(pytest.mark.skip(reason=f"opted out: {reason}"))
        if k := self.failing:
            told["failing"] = f"{self.nodeid}: {k.reason} ({k.link}, {k.version}, until {k.expires})"
        self.user_properties.append(("contract", told))  # which reports carry, from another process too

    def runtest(self) -> None:
        limit = profiles.QUICK if self.config.getoption("markexpr", "") == "quick" else None
        run = examples(self.contract, self.prop, self.twin, self.config.getoption("--reproduce"), limit=limit)
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
    contract: Contract,
    prop: Property,
    twin: Twin | None,
    blob: str | None = None,
    shrink: bool = True,
    limit: int | None = None,
) -> Callable[[], None]:
    """A fresh hypothesis test of one property. It fails too if no example could have shown a failure.

    Where few examples show nothing, such as one with a mask that hides all, more follow.

    blob: repeats the configuration that a failure has printed. shrink: look for a smaller one that fails too.
    limit: draw no more examples than this.
    """
    shown: list[bool] = []

    budget = min(settings.default.max_examples if settings.default else 100, limit or 100_000)
    cost = prop.cost * (4 if contract.model else 1)
    skipped = {Phase.explain} | (set() if shrink else {Phase.shrink})  # explaining traces every line, compilers' too
    phases = [phase for phase in settings().phases if phase not in skipped]

    def check(count: int) -> None:
        @settings(max_examples=max(1, count), phases=phases, **profiles.COMMON)
        @given(case=contract.cases())
        def draw(case: Case) -> None:
            if count > budget // cost and any(shown):
                return
            result = prop.check(case, twin) if prop.each_twin else prop.check(case)
            shown.append(result is not False)

        (hypothesis.reproduce_failure(hypothesis.__version__, blob.encode())(draw) if blob else draw)()

    def run() -> None:
        check(budget // cost)
        for more in (budget, 10 * budget):
            if not any(shown) and more > budget // cost and not blob:
                check(more)
        if not any(shown):
            pytest.fail(
                f"{contract.name} {prop.name} is vacuous: none of {len(shown)} configurations could have failed",
                pytrace=False,
            )

    return run
