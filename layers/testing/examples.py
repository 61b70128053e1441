"""Checks a property of a contract on drawn configurations, and all of them in one call: `Contract.check`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import hypothesis
import pytest
from hypothesis import Phase, given, settings

from layers.testing import profiles
from layers.testing.claims import exercised
from layers.testing.contract import Case, Contract, KnownFailure, Twin
from layers.testing.properties import GENERIC, Property
from layers.testing.teaching import lessons
from layers.testing.verdicts import NO_BATCH, Inapplicable, Vacuous, missing_in_torch

NEEDS_TWIN = ("forward", "backward", "weights")
"""Properties that compare with a twin and nothing else; the precision ones fall back on rounding theory."""
CONFIGURATION = "configuration: "
"""How the note begins that names it; of our own, for other plugins change what hypothesis prints."""


def promised(contract: Contract, arguments: bool = False) -> Iterator[tuple[str, Property, Twin | None]]:
    """Every property that applies, with its twin where it compares with one, under the name of its test.

    arguments: `exercised` too, where the contract does not claim it.
    Errors: `ValueError` if the contract opts out of a property that there is not.
    """
    properties = [*GENERIC, *contract.holds]
    if arguments and not any(p.name == "exercised" for p in properties):
        properties.append(exercised())
    known = {p.name for p in properties} | {"exercised"}
    if unknown := sorted((contract.without.keys() | contract.failing.keys()) - known):
        raise ValueError(f"{contract.name}: no property named {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    for prop in (p for p in properties if p.applies(contract)):
        twins: list[Twin | None] = (list(contract.twins) or [None]) if prop.each_twin else [None]
        for twin in twins:
            if twin is not None or prop.name not in NEEDS_TWIN:
                yield f"{prop.name}[{twin.name}]" if twin else prop.name, prop, twin


def examples(
    contract: Contract,
    prop: Property,
    twin: Twin | None,
    blob: str | None = None,
    shrink: bool = True,
    limit: int | None = None,
    until: float | None = None,
) -> Callable[[], None]:
    """A fresh hypothesis test of one property. It fails too if no example could have shown a failure.

    Where few examples show nothing, such as one with a mask that hides all, more follow. Where the property has no meaning for
    any of them, the test is skipped and says why.

    blob: repeats the configuration that a failure has printed. shrink: look for a smaller one that fails too.
    limit: draw no more examples than this. until: none after this time, of `time.monotonic`, but one.
    """
    results: list[Any] = []

    budget = min(profiles.budget(), limit or 100_000)
    cost = prop.cost * (4 if contract.model else 1)
    skipped = {Phase.explain} | (set() if shrink else {Phase.shrink})  # explaining traces every line, compilers' too
    phases = [phase for phase in settings().phases if phase not in skipped]

    def late() -> bool:
        return until is not None and bool(results) and time.monotonic() > until

    def check(count: int) -> None:
        @settings(max_examples=max(1, count), phases=phases, **profiles.COMMON)
        @given(case=contract.cases())
        def draw(case: Case) -> None:
            if (count > budget // cost and shown(results)) or late():
                return
            try:
                results.append(prop.check(case, twin) if prop.each_twin else prop.check(case))
            except Exception as error:
                known = isinstance(error, NotImplementedError | RuntimeError)
                missing = missing_in_torch(error, contract.foreign) if known else None
                if not missing:
                    error.add_note(f"{CONFIGURATION}{case!r}")
                    vars(error)["contract_case"] = case
                    raise
                results.append(missing)

        test: Any = draw
        if blob:
            test = hypothesis.reproduce_failure(hypothesis.__version__, blob.encode())(draw)
        elif prop.name == "smoke":
            test = hypothesis.example(case=contract.example())(draw)  # by which `cause` has other properties skipped
        test()

    def run() -> None:
        if prop.whole:
            contract.until = until
            verdict = prop.check(contract)
            if isinstance(verdict, Inapplicable):
                pytest.skip(f"{prop.name} cannot be checked for {contract.name}: {verdict.reason}")
            if isinstance(verdict, Vacuous):
                pytest.fail(f"{contract.name} {prop.name} is vacuous: {verdict.reason}", pytrace=False)
            return
        check(budget // cost)
        for more in (budget, 10 * budget):
            settled = shown(results) or bool(blob) or NO_BATCH in results or (without_meaning(results) and len(results) >= 4)
            if not settled and more > budget // cost:
                check(min(more, 4) if without_meaning(results) else more)
        if without_meaning(results):
            pytest.skip(f"{prop.name} cannot be checked for {contract.name}: {results[0].reason}")
        if not shown(results) and late():
            pytest.skip(f"{prop.name} has shown nothing of {contract.name} in its time")
        if not shown(results):
            why = Counter(r.reason for r in results if isinstance(r, Vacuous)).most_common(1)
            pytest.fail(
                f"{contract.name} {prop.name} is vacuous: none of {len(results)} configurations could have failed"
                + "".join(f"; {reason}" for reason, _ in why),
                pytrace=False,
            )

    return run


def shown(results: list[Any]) -> bool:
    """Whether one of the configurations could have failed."""
    return any(result is not False and not isinstance(result, (Vacuous, Inapplicable)) for result in results)


def without_meaning(results: list[Any]) -> bool:
    return bool(results) and all(isinstance(result, Inapplicable) for result in results)


def cause(contract: Contract) -> str:
    """Why one configuration cannot be evaluated; nothing if it can."""
    try:
        next(p for p in GENERIC if p.name == "smoke").check(contract.example())
    except Exception as error:
        return first_line(error)
    return ""


def configuration(error: BaseException | None) -> str:
    """That in which a property has failed, as its note says; "" if there is none."""
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith(CONFIGURATION)]
    return notes[-1].removeprefix(CONFIGURATION) if notes else ""


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:300]}"


@dataclass(frozen=True)
class Outcome:
    """What became of one property: how is "passed", "failed" or "skipped"; message says why, and lessons what else helps."""

    name: str
    how: str
    message: str
    seconds: float
    lessons: tuple[str, ...] = ()


class Report(list[Outcome]):
    """What a contract's properties have come to. True if some have passed and none has failed; printed, a line for each."""

    def __bool__(self) -> bool:
        return any(outcome.how == "passed" for outcome in self) and not self.failed()

    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self if outcome.how == "failed"]

    def __repr__(self) -> str:
        counts = Counter(outcome.how for outcome in self)
        lines = [", ".join(f"{counts[how]} {how}" for how in ("passed", "failed", "skipped"))]
        lines += [f"  {o.how}  {o.name} ({o.seconds:.1f} s){': ' * bool(o.message)}{o.message}" for o in self]
        return "\n".join(lines)


def report(contract: Contract, only: Iterable[str] = (), limit: int = 8, seconds: float | None = None) -> Report:
    """See `Contract.check`."""
    return Report(outcomes(contract, only, limit, seconds))


def outcomes(contract: Contract, only: Iterable[str] = (), limit: int = 8, seconds: float | None = None) -> Iterator[Outcome]:
    """The same, one by one."""
    if limit < 1:
        raise ValueError(f"examples must be at least 1, got {limit}")
    begin, promises = time.monotonic(), list(promised(contract))
    if unknown := sorted(set(only) - {p.name for p in (*GENERIC, *contract.holds)}):
        raise ValueError(f"only must name properties, got {', '.join(unknown)}")
    gated = "smoke" in (only or ["smoke"]) and "smoke" not in contract.without.keys() | contract.failing.keys()
    why = cause(contract) if gated else ""
    for name, prop, twin in promises:
        if only and prop.name not in only:
            continue
        start, learnt = time.monotonic(), list[str]()
        until = None if seconds is None else begin + seconds
        if reason := contract.without.get(prop.name):
            how, message = "skipped", f"opted out: {reason}"
        elif why:
            how, message = ("failed", why) if prop.name == "smoke" else ("skipped", f"smoke fails: {why}")
        elif until is not None and start > until:
            how, message = "skipped", f"the {seconds:g} seconds are over"
        else:
            run = examples(contract, prop, twin, limit=limit, until=until)
            how, message, learnt = outcome(run, contract.failing.get(prop.name), prop.name, twin)
        yield Outcome(name, how, message, time.monotonic() - start, tuple(learnt))


def outcome(run: Callable[[], None], known: KnownFailure | None, name: str, twin: Twin | None) -> tuple[str, str, list[str]]:
    """How it went, why, and what a failure teaches."""
    if known and known.expired():
        return "failed", known.expired(), []
    try:
        run()
    except pytest.skip.Exception as skipped:
        return "skipped", str(skipped), []
    except (Exception, pytest.fail.Exception) as error:
        if known:
            return "skipped", f"known failure: {known.reason}", []
        case = configuration(error)
        message = f"{first_line(error)}{f'; smallest configuration: {case}' if case else ''}"
        return "failed", message, lessons(error, name, twin)
    return ("failed", f"known failure passes, remove it: {known.reason}", []) if known else ("passed", "", [])
