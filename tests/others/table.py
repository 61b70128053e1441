"""All contracts of others' blocks, and the page about them: `PYTHONPATH=.:tests/others python -m table` writes it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from findings import CALLING, LEFT_OUT, Finding
from hypothesis import strategies as st

from layers.testing import Contract
from layers.testing.examples import promised

NAMES = ("test_torch", "test_torchvision", "test_timm", "test_x_transformers", "test_transformers")
LIBRARIES: tuple[ModuleType, ...] = tuple(importlib.import_module(name) for name in NAMES)
FINDINGS: list[Finding] = [finding for module in LIBRARIES for finding in module.FOUND]
PAGE = Path(__file__).parents[2] / "docs" / "others.md"
BEFORE = """# Blocks of others

{blocks} contracts of other libraries' blocks, with what the kit of [check your own block](check-your-block.md) found in
{versions}.

`tox -e others` repeats it. {held} properties must be green, or skipped where torch itself lacks something; those of the findings
are red, only under the options that are named, and must be: a defect that is mended is told too. Options are drawn, those of a
finding among many others.
`compile` and `export`, which take more time than all others together, are left out.

In the tables a property counts as green only if it is so under all options: a block with 1 of 25 may be red under one option
alone, and green under every other. What is below a table says under which.

Written by `PYTHONPATH=.:tests/others python -m table`.
"""


def contracts(module: ModuleType) -> list[Contract]:
    return [value for value in vars(module).values() if isinstance(value, Contract)]


def names(contract: Contract) -> list[str]:
    """Its properties, but those that are left out and those that it opts out of."""
    return [name for name, prop, _ in promised(contract) if prop.name not in {*LEFT_OUT, *contract.without}]


def findings_of(module: ModuleType, contract: Contract) -> list[Finding]:
    return [finding for finding in module.FOUND if finding.contract == contract.name]


def held(module: ModuleType, contract: Contract) -> list[str]:
    """Those that are green whatever is drawn."""
    found = findings_of(module, contract)
    return [name for name in names(contract) if not any(f.of(contract.name, name) for f in found)]


def drawn(contract: Contract) -> str:
    """Arguments that are drawn."""
    items = contract.arguments.items()
    return ", ".join(f"`{k}`" for k, v in items if isinstance(v, st.SearchStrategy) or inspect.isfunction(v))


def link(thread: str) -> str:
    repository, _, number = thread.partition("#")
    return f"[{thread}](https://github.com/{repository}/issues/{number})"


def told(finding: Finding) -> str:
    """Where one can read of it."""
    if finding.documented:
        return f"documented: {finding.documented}"
    return "cf. " * finding.cf + ", ".join(map(link, finding.seen)) if finding.seen else "no thread known"


def broken(finding: Finding) -> str:
    if finding.property == "*":
        return "all"
    return "all that call it" if finding.property == CALLING else ", ".join(f"`{name}`" for name in finding.property.split())


def rows(module: ModuleType) -> Iterator[str]:
    yield from ("| block | drawn | claims | green under all options | findings |", "| --- | --- | --- | --- | --- |")
    for contract in contracts(module):
        found = findings_of(module, contract)
        defects = sum(not finding.documented for finding in found)
        count = f"{defects}{f' and {len(found) - defects} documented' if len(found) > defects else ''}" if found else ""
        claims = ", ".join(f"`{claim.name}`" for claim in contract.holds)
        green = f"{len(held(module, contract))} of {len(names(contract))}"
        yield f"| {contract.name} | {drawn(contract)} | {claims} | {green} | {count} |"


def section(module: ModuleType) -> Iterator[str]:
    yield from (f"## {module.LIBRARY} {release(module)}\n", *rows(module), "")
    for finding in module.FOUND:
        yield f"### {finding.contract}: {finding.options}\n" if finding.options != "all" else f"### {finding.contract}\n"
        yield f"{finding.what} Red: {broken(finding)}; {told(finding)}.\n"
        yield f"```py\n{finding.shown.strip()}\n```\n"


def release(module: ModuleType) -> str:
    return version(module.LIBRARY).partition("+")[0]


def page() -> str:
    counts = [(len(contracts(m)), sum(len(held(m, c)) for c in contracts(m))) for m in LIBRARIES]
    versions = ", ".join(f"{module.LIBRARY} {release(module)}" for module in LIBRARIES)
    before = BEFORE.format(blocks=sum(n for n, _ in counts), held=sum(n for _, n in counts), versions=versions)
    return "\n".join([before, *(line for module in LIBRARIES for line in section(module))]).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
