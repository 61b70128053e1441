"""One pytest test for each property of a contract."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layers.testing import profiles
from layers.testing.contract import Contract, Twin
from layers.testing.drawing import Function
from layers.testing.equality import Mismatch
from layers.testing.examples import cause, configuration, examples, promised
from layers.testing.exercise import home_of
from layers.testing.properties import Property
from layers.testing.teaching import lessons

MACHINERY = re.compile(
    r"[\\/](_pytest|pluggy|hypothesis|site-packages[\\/]torch)[\\/]|contextlib\.py$|" + re.escape(str(Path(__file__).parent))
)
"""Files whose frames a traceback leaves out."""
LINES = 12
"""Of a message at most: compilers append logs of hundreds."""


class ContractCollector(pytest.Collector):
    """One block: collects a test of every property, the generic ones and the claimed."""

    def __init__(self, contract: Contract, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.contract = contract
        self.spent = 0.0
        """Seconds that its tests have taken."""
        self.cause = ""
        """Why `smoke` fails, once that is known."""

    def collect(self) -> Iterator[pytest.Item]:
        contract = self.contract
        group = self.of_one_block()
        contract.beside = [other for other in group if other is not contract]
        claimed = any(claim.name == "exercised" for other in group for claim in other.holds)
        asked = self.config.getoption("--contract-arguments") or not (contract.foreign or contract.block is Function)
        asker = next((other for other in group if not other.foreign), group[0])
        try:
            promises = list(promised(contract, arguments=asked and not claimed and contract is asker))
        except ValueError as error:
            raise self.CollectError(str(error)) from error
        for name, prop, twin in promises:
            yield PropertyItem.from_parent(self, name=name, contract=contract, prop=prop, twin=twin)

    def of_one_block(self) -> list[Contract]:
        """The contracts of the module that are of this block."""
        module = getattr(self.parent, "obj", None)
        found = {id(c): c for c in vars(module).values() if isinstance(c, Contract)} if module is not None else {}
        home = home_of(self.contract.block)
        return [c for c in found.values() if home_of(c.block) is home] or [self.contract]


QUICK = ("smoke", "shape", "forward", "backward", "weights")
"""Properties that `pytest -m quick` checks."""


class PropertyItem(pytest.Item):
    """One property of one block: a hypothesis test over drawn configurations."""

    def __init__(self, contract: Contract, prop: Property, twin: Twin | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.contract, self.prop, self.twin = contract, prop, twin
        assert isinstance(self.parent, ContractCollector)
        self.home = self.parent
        self.failing = contract.failing.get(prop.name)
        if prop.name in QUICK:
            self.add_marker("quick")
        told = {"block": contract.name, "property": prop.name, "test": self.nodeid, "without": "", "failing": "", "late": False}
        if reason := contract.without.get(prop.name):
            told["without"] = f"{self.nodeid}: {reason}"
            self.add_marker(pytest.mark.skip(reason=f"opted out: {reason}"))
        if k := self.failing:
            told["failing"] = f"{self.nodeid}: {k.reason} ({k.link}, {k.version}, until {k.expires})"
        self.told = told
        self.user_properties.append(("contract", told))  # which reports carry, from another process too

    def runtest(self) -> None:
        start, seconds = time.monotonic(), self.config.getoption("--contract-seconds")
        if seconds is not None and self.home.spent > seconds:
            self.told["late"] = True
            pytest.skip(f"the tests of {self.contract.name} have had their {seconds:g} seconds")
        try:
            self.check(None if seconds is None else start + seconds - self.home.spent)
        finally:
            self.home.spent += time.monotonic() - start

    def check(self, until: float | None) -> None:
        limit = profiles.QUICK if self.config.getoption("markexpr", "") == "quick" else None
        blob = self.config.getoption("--reproduce")
        run = examples(self.contract, self.prop, self.twin, blob, limit=limit, until=until)
        if self.failing is None:
            return self.gated(run) if self.has_gate() and not blob else run()
        if self.failing.expired():
            pytest.fail(self.failing.expired(), pytrace=False)
        try:
            run()
        except (Exception, pytest.fail.Exception):  # the latter where it is vacuous
            pytest.xfail(self.failing.reason)
        pytest.fail(f"known failure passes, remove it: {self.failing.reason}", pytrace=False)

    def has_gate(self) -> bool:
        """Whether this is another property than `smoke`, which is checked in this session too and says why nothing runs."""
        known = self.contract.without.keys() | self.contract.failing.keys()
        return self.prop.name != "smoke" and "smoke" not in known and f"{self.home.nodeid}::smoke" in selected(self.session)

    def gated(self, run: Any) -> None:
        """Skip where no configuration can be evaluated at all: one cause is one failure, of `smoke`."""
        if not self.home.cause:
            try:
                return run()
            except Exception as error:
                if isinstance(error, Mismatch):
                    raise
                self.home.cause = cause(self.contract)
                if not self.home.cause:
                    raise
        pytest.skip(f"{self.contract.name}::smoke fails: {self.home.cause}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The property, the message, the smallest configuration, where it begins, its usual cause, the line that repeats it.

        And the traceback, for what is not a mismatch.
        """
        notes = "\n".join(getattr(excinfo.value, "__notes__", []))
        blob = re.search(r"@reproduce_failure\([^,]+, b?['\"](.+?)['\"]\)", notes)
        lines = [f"{self.contract.name} fails {self.prop.name}: {sentence(self.prop)}".strip()]
        if not isinstance(excinfo.value, Mismatch):
            frames = traceback.extract_tb(excinfo.tb)
            lines += traceback.format_list([f for f in frames if not MACHINERY.search(f.filename)][-LINES:] or frames[-3:])
        lines.append(
            shortened("".join(traceback.format_exception_only(type(excinfo.value), excinfo.value.with_traceback(None))[:1]))
        )
        if case := configuration(excinfo.value):
            lines.append(f"smallest configuration: {case}")
        lines += lessons(excinfo.value, self.prop.name, self.twin)
        if blob:
            lines.append(f"again: pytest '{self.nodeid}' --reproduce '{blob[1]}'")
        return "\n".join(lines)

    def add_report_section(self, when: str, key: str, content: str) -> None:
        """What was logged, but for torch's own trace of what it compiles: hundreds of lines."""
        kept = content if key != "log" else "\n".join(line for line in content.splitlines() if "torch.__trace" not in line)
        if kept.strip():
            super().add_report_section(when, key, kept)

    def reportinfo(self) -> tuple[Any, int, str]:
        return self.path, 0, f"{self.contract.name}::{self.name}"


SELECTED = pytest.StashKey[set[str]]()


def selected(session: pytest.Session) -> set[str]:
    """Names of the tests of this session."""
    if SELECTED not in session.stash:
        session.stash[SELECTED] = {item.nodeid for item in session.items}
    return session.stash[SELECTED]


def sentence(prop: Property) -> str:
    """The property in a sentence or two: the first paragraph of what its check says of itself."""
    return " ".join((prop.check.__doc__ or "").split("\n\n")[0].split())


def shortened(text: str) -> str:
    lines = [line[:500] for line in text.rstrip().splitlines()]
    left_out = len(lines) - LINES
    return "\n".join(lines if left_out <= 0 else [*lines[: LINES - 2], f"({left_out} lines left out)", *lines[-2:]])
