"""What the kit has found in blocks of others, and how a test with a finding is checked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from layers.testing import GENERIC, Case, Contract, Mismatch, Property, Twin
from layers.testing.examples import shown, without_meaning
from layers.testing.verdicts import Verdict, missing_in_torch


@dataclass(frozen=True)
class Finding:
    """A property that a block of a released version breaks.

    contract: name of the contract. property: names of the properties that the defect breaks, separated by spaces, or "*".
    options:  under which it does, in words. where: the same of a drawn configuration; all others must be green.
    what:     in a sentence or two.
    shown:    lines of Python that need nothing but the library, and fail once the defect is gone.
    raises:   what the check raises then; all else is red.
    seen:     upstream threads about it, as "owner/name#number".
    cf:       the threads are about a related defect.
    documented: where the library says so itself: no defect, and told all the same.
    """

    contract: str
    property: str
    options: str
    what: str
    shown: str
    where: Callable[[Case], bool] = lambda case: True
    raises: type[Exception] | tuple[type[Exception], ...] = Mismatch
    seen: tuple[str, ...] = ()
    cf: bool = False
    documented: str = ""

    def of(self, contract: str, prop: str) -> bool:
        return self.contract == contract and (self.property == "*" or prop in self.property.split())


LEFT_OUT = ("compile", "export")
"""Properties that take more time than all others together, seconds to minutes for each block."""
CALLING = " ".join(prop.name for prop in GENERIC if prop.name not in ("inspection", *LEFT_OUT))
"""All properties that call the block."""
LIMITS = (60, 300)
"""Configurations within which a finding must be seen; the second where one of many options has not been among the first."""


def watch(contract: Contract, prop: Property, twin: Twin | None, findings: Sequence[Finding], count: int) -> dict[Finding, int]:
    """Red in one configuration at least of each finding's alone, and green in others; gives after how many each was seen.

    count: configurations that are looked at in any case. Errors: `AssertionError` where a finding is not seen, or where none of
    the others could have failed, and what the check raises where none was expected.
    """
    seen: dict[Finding, int] = {}
    verdicts: dict[Finding | None, list[Verdict]] = defaultdict(list)  # None: of configurations without a finding
    number = 0

    def green() -> bool:
        others = verdicts[None]
        return shown(others) or (without_meaning(others) and len(others) >= 4)

    for limit in LIMITS:
        for case in contract.examples(limit)[number:]:
            number += 1
            here = [finding for finding in findings if finding.where(case)]
            alone = here[0] if len(here) == 1 else None
            if number > count and (green() if not here else alone is None or alone in seen):
                continue
            try:
                verdict = prop.check(case, twin) if prop.each_twin else prop.check(case)
            except Exception as error:
                known = isinstance(error, NotImplementedError | RuntimeError)
                verdict = missing_in_torch(error, contract.foreign) if known else None
                if verdict is None:
                    if not any(isinstance(error, finding.raises) for finding in here):
                        error.add_note(f"configuration: {case!r}")
                        raise
                    if alone:  # of several at once one cannot tell which it is
                        seen.setdefault(alone, number)
                    continue
            if alone or not here:
                verdicts[alone].append(verdict)
        if len(seen) == len(findings) and (green() or not verdicts[None]):
            return seen
    for finding in (finding for finding in findings if finding not in seen):
        results, name = verdicts[finding], f"{prop.name} ({finding.options})"
        if not results:
            raise AssertionError(f"{contract.name} {name}: no configuration is of it alone: {finding.what}")
        if not shown(results):
            none = f"none of {len(results)} configurations could have failed"
            raise AssertionError(f"{contract.name} {prop.name} cannot show it ({finding.options}): {none}: {finding.what}")
        raise AssertionError(f"{contract.name} no longer breaks {name}: {finding.what}")
    if not without_meaning(others := verdicts[None]):
        none = f"none of {len(others)} configurations could have failed"
        raise AssertionError(f"{contract.name} {prop.name} is vacuous without the findings: {none}")
    return seen
