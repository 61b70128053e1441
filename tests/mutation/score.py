"""The score of the tests: of small bugs put into `layers/` and `zoo/`, the share that a test notices. `tox -e mutation`.

Bugs come in a random order, one at a time, each into a process of its own, which runs the tests that execute its line, quickest
first, up to the first that fails. What no test notices survives, unless `equivalent.toml` says why it changes nothing. A process
forks from one that has imported torch and all other libraries, so that most bugs take about as long as one small test.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import signal
import sys
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from itertools import islice
from pathlib import Path
from typing import Any

import baseline
import mutants
import pytest
from baseline import OPTIONS, ROOT
from mutants import Mutant

FOLDERS = {"layers": "tests/layers", "zoo": "tests/zoo"}
"""The tests of a package; those of the other one come after them."""
LISTED = Path(__file__).with_name("equivalent.toml")
OUTCOMES = {0: "survived", 1: "killed", 2: "killed", 3: "killed", 4: "killed"}
"""Of pytest's exit codes: a module that cannot be imported (2 to 4) is noticed too."""
MEMORY = 8 << 30
"""Bytes that a process may take: a wrong size may ask for any number."""


class Replaced(SourceFileLoader):
    """Loads a module from its source with the mutant in it, and leaves no bytecode behind."""

    mutant: Mutant

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        return compile(self.mutant.apply(Path(path).read_bytes()), path, "exec", dont_inherit=True)


class Finder:
    """Finds that module before anybody else does."""

    def __init__(self, mutant: Mutant) -> None:
        name = mutant.path.removesuffix(".py").replace("/", ".")
        self.name, self.file, self.mutant = name.removesuffix(".__init__"), ROOT / mutant.path, mutant

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        loader = Replaced(name, str(self.file))
        loader.mutant = self.mutant
        return spec_from_file_location(name, self.file, loader=loader)


class Chosen:
    """A pytest plugin: these tests alone, in this order."""

    def __init__(self, tests: list[str]) -> None:
        self.order, self.failed = {name: i for i, name in enumerate(tests)}, ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda item: self.order[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = report.nodeid


class Tests:
    """Which tests may notice a mutant, in what order."""

    def __init__(self, old: bool, packages: Iterable[str] = FOLDERS) -> None:
        self.kept = {package: baseline.load(FOLDERS[package], old) for package in packages}

    def stages(self, mutant: Mutant, most: float) -> list[dict[str, float]]:
        """Tests with their seconds: of the file that is named after the module, of its package, of the other package.

        All together take at most `most` seconds without a mutant, and what would take longer is left out.
        """
        home, stem = mutant.path.partition("/")[0], Path(mutant.path).stem
        result: list[dict[str, float]] = [{}, {}, {}]
        for package, kept in self.kept.items():
            for number in self.near(kept["lines"].get(mutant.path, {}), mutant):
                name = kept["names"][number]
                own = Path(name.partition("::")[0]).stem == f"test_{stem}"
                result[2 if package != home else 0 if own else 1][name] = kept["tests"][name]
        for i, tests in enumerate(result):
            result[i] = {}
            for name in sorted(tests, key=lambda n: tests[n]):
                if tests[name] <= most:
                    most -= tests[name]
                    result[i][name] = tests[name]
        return [tests for tests in result if tests]

    @staticmethod
    def near(lines: dict[str, list[int]], mutant: Mutant) -> set[int]:
        """Numbers of the tests that run its lines, or any line of the module if it is at work from the import on."""
        first, last = mutant.lines
        found = {n for line, numbers in lines.items() if first <= int(line) <= last for n in numbers}
        return found if found and not mutant.early else {n for numbers in lines.values() for n in numbers}


def judge(mutant: Mutant | None, stages: list[dict[str, float]], log: Path | None = None) -> tuple[str, str]:
    """Killed, survived or timeout, and by which test."""
    for tests in stages:
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(read)
            try:
                code, failed = run(mutant, list(tests), 60 + 5 * sum(tests.values()), log)
                os.write(write, failed.encode()[:1000])
                os._exit(code)
            finally:
                os._exit(99)
        os.close(write)
        status = waited(pid, 1200)
        with os.fdopen(read) as pipe:
            failed = pipe.read()
        if status is None or os.WIFSIGNALED(status):
            return ("timeout" if status is None or os.WTERMSIG(status) == signal.SIGXCPU else "killed"), failed
        outcome = OUTCOMES.get(os.WEXITSTATUS(status))
        if outcome is None:
            raise RuntimeError(f"pytest ended with {os.WEXITSTATUS(status)} for {mutant}")
        if outcome != "survived":
            return outcome, failed
    return "survived", ""


def waited(pid: int, seconds: float) -> int | None:
    """How the process ended, or None where it had to be stopped."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def run(mutant: Mutant | None, tests: list[str], seconds: float, log: Path | None) -> tuple[int, str]:
    """In a process of its own: pytest's exit code, and the test that failed."""
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    target = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    if mutant is not None:
        sys.meta_path.insert(0, Finder(mutant))
    chosen = Chosen(tests)
    files = dict.fromkeys(name.partition("::")[0] for name in tests)
    code = int(pytest.main([*(str(ROOT / file) for file in files), *OPTIONS], plugins=[chosen]))
    return code, chosen.failed


def prepare(names: Iterable[str]) -> None:
    """Import what every process needs, and nothing of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            try:
                importlib.import_module(name)
            except Exception:  # some are found only in a certain order, and the process that needs them imports them itself
                continue
    ours = [n for n in sys.modules if n.partition(".")[0] in FOLDERS]
    if ours:
        raise RuntimeError(f"a library imports what is to be changed: {ours}")


def listed(sources: Iterable[tuple[str, bytes]]) -> dict[tuple[str, str, str, str], str]:
    """The equivalent mutants with their reasons; one that is no longer in the source is an error."""
    rows = tomllib.loads(LISTED.read_text(encoding="utf-8")).get("equivalent", [])
    reasons = {(row["file"], row["function"], row["old"], row["new"]): row["why"] for row in rows}
    files = {file for file, *_ in reasons}
    there = {m.identity() for m in mutants.every((path, text) for path, text in sources if path in files)}
    gone = [" ".join(key) for key in reasons if key not in there]
    if gone:
        raise SystemExit("equivalent.toml lists what is no longer there:\n" + "\n".join(gone))
    return reasons


def judged(options: argparse.Namespace, file: Path) -> None:
    """Judge mutants of the sample, by several processes, and append each to the file."""
    tests = Tests(options.old, options.tests)
    prepare(dict.fromkeys(n for kept in tests.kept.values() for n in kept["modules"]))
    os.chdir(ROOT)
    drawn = list(islice(of_sample(options), options.skip, options.skip + options.mutants))
    for mutant in drawn[:3]:  # tests must pass where nothing is changed
        if judge(None, tests.stages(mutant, options.seconds)[:1])[0] != "survived":
            raise SystemExit(f"tests of {mutant.path} fail without any mutant")
    end = time.monotonic() + 60 * options.minutes
    children = []
    for worker in range(options.workers):
        pid = os.fork()
        if pid:
            children.append(pid)
            continue
        try:
            for i in range(worker, len(drawn), options.workers):
                if time.monotonic() > end:
                    break
                start = time.monotonic()
                outcome, by = judge(drawn[i], tests.stages(drawn[i], options.seconds))
                row = dict(number=i, outcome=outcome, by=by, seconds=round(time.monotonic() - start, 1), **vars(drawn[i]))
                with file.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(row) + "\n")
        finally:
            os._exit(0)
    for pid in children:
        os.waitpid(pid, 0)


def of_sample(options: argparse.Namespace) -> Iterator[Mutant]:
    return mutants.sample(mutants.sources(ROOT, options.packages), options.seed)


def table(rows: list[dict[str, Any]], reasons: dict[tuple[str, str, str, str], str]) -> str:
    """Counts by package and by kind, and the survivors."""
    for row in rows:
        if row["outcome"] == "survived" and (row["path"], row["function"], row["old"], row["new"]) in reasons:
            row["outcome"] = "equivalent"
    lines = ["| | mutants | killed | by timeout | survived | equivalent | score |", "| --- " * 7 + "|"]
    groups: dict[str, list[str]] = {}
    for row in rows:
        for group in (row["path"].partition("/")[0], row["kind"], "all"):
            groups.setdefault(group, []).append(row["outcome"])
    for group in sorted(groups, key=lambda g: (g == "all", g not in FOLDERS, g)):
        n = Counter(groups[group])
        caught, real = n["killed"] + n["timeout"], n.total() - n["equivalent"]
        score = f"{100 * caught / real:.1f} %" if real else ""
        lines.append(f"| {group} | {n.total()} | {caught} | {n['timeout']} | {n['survived']} | {n['equivalent']} | {score} |")
    for row in rows:
        if row["outcome"] == "survived":
            place = f"{row['path']}:{row['lines'][0]} {row['function']}, {row['kind']}"
            lines += ["", place, f"  - {row['old']}", f"  + {row['new']}"]
    return "\n".join(lines)


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", default=list(FOLDERS), help="folders or files, by default layers and zoo")
    parser.add_argument("--tests", nargs="*", default=list(FOLDERS), choices=list(FOLDERS), help="packages whose tests run")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--mutants", type=int, default=10_000, help="at most")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first ones of the sample")
    parser.add_argument("--minutes", type=float, default=50, help="begin no mutant later than that")
    parser.add_argument("--seconds", type=float, default=60, help="of tests for one mutant, at most")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--old", action="store_true", help="trust what is kept of which test runs which line")
    parser.add_argument("--again", metavar="FILE", help="no run: the table of an earlier one, with the list as it is now")
    return parser.parse_args(arguments)


def main() -> None:
    options = parsed()
    sys.path.insert(0, str(ROOT))
    reasons = listed(mutants.sources(ROOT, FOLDERS))
    file = Path(options.again) if options.again else baseline.KEPT / f"seed-{options.seed}-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
    if not options.again:
        judged(options, file)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    print(table(rows, reasons))
    print(f"\nseed {options.seed}, {file}")


if __name__ == "__main__":
    main()
