"""What the kit has found in blocks of others, and how a test with a finding is checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from layers.testing import GENERIC, Case, Contract, Property, Twin
from layers.testing.verdicts import missing_in_torch


@dataclass(frozen=True)
class Finding:
    """A property that a block of a released version breaks.

    contract: name of the contract. property: names of the properties that the defect breaks, separated by spaces, or "*".
    options:  under which it does, in words. where: the same of a drawn configuration; all others must be green.
    what:     in a sentence or two.
    shown:    lines of Python that need nothing but the library, and fail once the defect is gone.
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
    """Red in one configuration at least of each finding's, and green in others; gives after how many each was seen.

    count: configurations that are looked at in any case. Errors: `AssertionError` where a finding is not seen, and what the
    check raises where none was expected.
    """
    seen: dict[Finding, int] = {}
    number = 0
    for limit in LIMITS:
        for case in contract.examples(limit)[number:]:
            number += 1
            here = [finding for finding in findings if finding.where(case)]
            if number > count and (not here or all(finding in seen for finding in here)):
                continue
            try:
                prop.check(case, twin) if prop.each_twin else prop.check(case)
            except Exception as error:
                if isinstance(error, NotImplementedError | RuntimeError) and missing_in_torch(error):
                    continue
                if not here:
                    error.add_note(f"configuration: {case!r}")
                    raise
                for finding in here:
                    seen.setdefault(finding, number)
        if len(seen) == len(findings):
            return seen
    gone = next(finding for finding in findings if finding not in seen)
    raise AssertionError(f"{contract.name} no longer breaks {prop.name} ({gone.options}): {gone.what}")
