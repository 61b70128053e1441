"""The page of a run, ``pytest --contract-report report.html``: one file, blocks by properties, without scripts.

It says of each test whether it has passed, has failed, was skipped, opted out of or is known to fail, and why, and what time
it took.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import pytest

WORDS = {
    "fail": "failed",
    "known": "known failures, with reason",
    "out": "opted out, with reason",
    "skip": "skipped, with reason",
    "pass": "passed",
}
"""What may become of a test, the worst first."""
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --line: #bbb; --pass: #d9f0dc; --fail: #ffd3d0; --known: #ffe3b8;
        --out: #e3ddf5; --skip: #e8e8e8; }
@media (prefers-color-scheme: dark) { :root { --ink: #eee; --paper: #161616; --line: #555; --pass: #1d4a28; --fail: #7a1f1f;
        --known: #5f4208; --out: #41356b; --skip: #383838; } }
body { font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 1.5rem; }
.wide { overflow-x: auto; } .wide:focus-visible { outline: 3px solid; }
table { border-collapse: collapse; font-size: .85rem; } caption { text-align: left; padding: .5rem 0; }
th, td { border: 1px solid var(--line); padding: .15rem .4rem; text-align: left; }
thead th { vertical-align: bottom; } thead th + th { writing-mode: vertical-rl; }
tbody th { position: sticky; left: 0; background: var(--paper); }
td.seconds { text-align: right; font-variant-numeric: tabular-nums; } a { color: inherit; }
.pass { background: var(--pass); } .fail { background: var(--fail); } .known { background: var(--known); }
.out { background: var(--out); } .skip { background: var(--skip); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid var(--line); padding-left: .8rem; }
"""


@dataclass(frozen=True)
class Told:
    """What became of one test; how is a key of `WORDS`."""

    test: str
    property: str
    how: str
    message: str
    seconds: float

    @property
    def home(self) -> str:
        return self.test.rpartition("::")[0]

    @property
    def name(self) -> str:
        return self.test.rpartition("::")[2]


def told_of(stats: Mapping[str, Iterable[Any]]) -> list[Told]:
    """Tests of contracts in what pytest's terminal keeps of a run, of other processes too."""
    grouped: dict[str, list[pytest.TestReport]] = defaultdict(list)
    for report in (r for reports in stats.values() for r in reports if isinstance(r, pytest.TestReport)):
        if "contract" in dict(report.user_properties):
            grouped[report.nodeid].append(report)
    return [one(reports) for _, reports in sorted(grouped.items())]


def one(reports: list[pytest.TestReport]) -> Told:
    contract: Any = dict(reports[0].user_properties)["contract"]
    how, message = "pass", ""
    for report in reports:
        if report.failed:
            how, message = "fail", report.longreprtext
            break
        if hasattr(report, "wasxfail"):
            how, message = "known", contract["failing"].partition(": ")[2]
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            how, message = "out" if contract["without"] else "skip", reason.removeprefix("Skipped: ").removeprefix("opted out: ")
    return Told(contract["test"], contract["property"], how, message, sum(report.duration for report in reports))


def page(tests: list[Told], broken: Mapping[str, str] | None = None) -> str:
    """The document. broken: files that could not be collected, and why."""
    by_home: dict[str, dict[str, list[Told]]] = defaultdict(lambda: defaultdict(list))
    seconds: dict[str, float] = defaultdict(float)
    for test in tests:
        by_home[test.home][test.property].append(test)
        seconds[test.property] += test.seconds
    marks = {test.test: f"t{i}" for i, test in enumerate(tests)}
    counts = {how: sum(test.how == how for test in tests) for how in WORDS}
    summary = ", ".join(f"{counts[how]} {word.partition(',')[0]}" for how, word in WORDS.items())
    rows = [
        f'<tr><th scope="row">{text(home)}</th>'
        + "".join(cell(found.get(name, []), marks) for name in seconds)
        + f'<td class="seconds">{sum(t.seconds for several in found.values() for t in several):.1f}</td></tr>'
        for home, found in by_home.items()
    ]
    foot = "".join(f'<td class="seconds">{spent:.1f}</td>' for spent in [*seconds.values(), sum(seconds.values())])
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Contracts: {summary}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>Contracts</h1>",
        f"<p>{len(by_home)} blocks, {len(tests)} properties: {summary}; {sum(seconds.values()):.1f} seconds.</p>",
        '<div class="wide" role="region" aria-label="Blocks by properties" tabindex="0">\n<table>',
        "<caption>Blocks by properties. A cell leads to what there is to say of it.</caption>\n<thead><tr>",
        '<th scope="col">block</th>' + "".join(f'<th scope="col">{text(name)}</th>' for name in seconds),
        '<th scope="col">seconds</th></tr></thead>\n<tbody>',
        *rows,
        f'</tbody>\n<tfoot><tr><th scope="row">seconds</th>{foot}</tr></tfoot>',
        "</table>\n</div>",
        *(part for how in WORDS for part in listed(how, [test for test in tests if test.how == how], marks)),
        *(["<h2>Not collected</h2>"] if broken else []),
        *(details("", name, message) for name, message in (broken or {}).items()),
        "</main>\n</body>\n</html>\n",
    ]
    return "\n".join(parts)


def cell(tests: list[Told], marks: Mapping[str, str]) -> str:
    """Of one property of one block; of several twins the worst counts."""
    if not tests:
        return "<td></td>"
    worst = min(tests, key=lambda test: list(WORDS).index(test.how))
    lines = [f"{t.name}: {t.how}, {t.seconds:.1f} s{f': {t.message.splitlines()[0]}' if t.message else ''}" for t in tests]
    shown = worst.how if worst.how == "pass" else f'<a href="#{marks[worst.test]}">{worst.how}</a>'
    return f'<td class="{worst.how}" title="{text(chr(10).join(lines))}">{shown}</td>'


def listed(how: str, tests: list[Told], marks: Mapping[str, str]) -> list[str]:
    """What there is to say of all that have gone this way; failures are folded."""
    if not tests or how == "pass":
        return []
    head = f"<h2>{WORDS[how][0].upper()}{WORDS[how][1:]}</h2>"
    if how == "fail":
        return [head, *(details(f' id="{marks[test.test]}"', test.test, test.message) for test in tests)]
    return [head, "<ul>", *(f'<li id="{marks[t.test]}">{text(t.test)}: {text(t.message)}</li>' for t in tests), "</ul>"]


def details(mark: str, name: str, message: str) -> str:
    return f"<details{mark}><summary>{text(name)}</summary><pre>{text(message)}</pre></details>"


def text(value: str) -> str:
    """Escaped, without the colours of a terminal and what no page may hold."""
    plain = re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", value)
    return escape(re.sub(r"[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\N{REPLACEMENT CHARACTER}", plain))
