"""The score of the tests: of small bugs put into `layers/` and `zoo/`, the share that a test notices. `tox -e mutation`.

Bugs come in a random order, one at a time, each into a process of its own, which runs the files of tests that are nearest to the
module, what is about the changed class first, up to the first failure. What no test notices survives, unless `equivalent.toml`
says why it changes nothing. A process forks from one that has imported torch and all other libraries, so that most bugs take
about as long as a few small tests.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import time
import tomllib
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from itertools import islice
from pathlib import Path
from typing import Any

import mutants
import pytest
from mutants import Mutant
from nearest import ROOT, libraries, nearest

PACKAGES = ("layers", "zoo")
KEPT = ROOT / ".cache" / "mutation"
OPTIONS = (
    *(
        "-q",
        "-n0",
        "-x",
        "-p",
        "no:cacheprovider",
        "--hypothesis-profile=few",
        "--durations=0",
        "-m",
        "not slow and not processes",
    ),
    "--assert=plain",  # else pytest itself loads what its plugins are distributed with, which is the module with the bug
)
"""What compiles or starts processes would take hours: the score is a lower bound."""
LISTED = Path(__file__).with_name("equivalent.toml")
OUTCOMES = {0: "survived", 1: "killed", 2: "killed", 3: "killed", 4: "killed", 5: "survived"}
"""Of pytest's exit codes: a module that cannot be imported (2 to 4) is noticed too; 5 is of files with no test to run."""
GRACE = 60
"""Seconds of the processor that one test may take beyond those of a mutant, which is then killed, by timeout."""
PATIENCE = 3
"""Times as long by the clock, for a process that hangs without using the processor."""
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


FIRST = ("smoke", "shape", "forward", "backward", "weights", "bad_argument", "bad_input")
"""Properties that notice most, in this order; then other tests, then the other properties."""
LAST = ("gradcheck", "second_derivatives", "forward_derivatives", "per_sample_gradients", "export", "trace")
"""Properties that take longest."""


class Chosen:
    """A pytest plugin: tests in the order in which they are likely to notice; none begins after so many seconds."""

    def __init__(self, mutant: Mutant | None, seconds: float) -> None:
        self.name = mutant.function.partition(".")[0] if mutant else ""
        self.seconds, self.over, self.failed = seconds, False, ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=self.rank)  # which keeps the order of equals

    def rank(self, item: pytest.Item) -> tuple[int, bool]:
        contract = getattr(item, "contract", None)
        name = item.name.partition("[")[0]
        if contract is not None:
            about = self.name in (getattr(contract.block, "__name__", ""), contract.name)
            step = FIRST.index(name) if name in FIRST else 30 if name in LAST else 20
        else:
            about = bool(self.name) and self.name in item.function.__code__.co_names
            step = 10
        return step + (0 if about else 5), not about

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if time.process_time() > self.seconds:
            item.session.shouldstop = self.over = True
            pytest.skip("the time for this mutant is over")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = report.nodeid


def judge(
    mutant: Mutant | None, stages: list[list[str]], seconds: float = 60, log: Path | None = None, only: tuple[str, ...] = ()
) -> tuple[str, str]:
    """Killed, timeout or survived, and by which test. only: further options of pytest."""
    for files in stages:
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(read)
            code = 99
            try:
                code, failed = run(mutant, files, seconds, log, only)
                os.write(write, failed.encode()[:1000])
            except BaseException:
                os.write(write, traceback.format_exc().encode()[-4000:])
            finally:
                os._exit(code)
        os.close(write)
        status = waited(pid, PATIENCE * (seconds + GRACE))
        with os.fdopen(read) as pipe:
            failed = pipe.read()
        if status is None or os.WIFSIGNALED(status):
            return ("timeout" if status is None or os.WTERMSIG(status) == signal.SIGXCPU else "killed"), failed
        outcome = OUTCOMES.get(os.WEXITSTATUS(status))
        if outcome is None:
            raise RuntimeError(f"pytest ended with {os.WEXITSTATUS(status)} for {mutant}: {failed}")
        if outcome == "killed":
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


def run(mutant: Mutant | None, files: list[str], seconds: float, log: Path | None, only: tuple[str, ...] = ()) -> tuple[int, str]:
    """In a process of its own: pytest's exit code, and the test that failed."""
    seconds += time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + GRACE, int(seconds) + GRACE + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    target = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    finder = Finder(mutant) if mutant else None
    if finder:
        sys.meta_path.insert(0, finder)
    chosen = Chosen(mutant, seconds)
    code = int(pytest.main([*(str(ROOT / file) for file in files), *OPTIONS, *only], plugins=[chosen]))
    loaded = sys.modules.get(finder.name) if finder else None
    if loaded is not None and not isinstance(loaded.__loader__, Replaced):
        raise RuntimeError(f"{loaded.__name__} was loaded without its bug")
    return 0 if chosen.over else code, chosen.failed


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


def prepare(files: list[str]) -> None:
    """Import what these tests need from elsewhere, and nothing of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for statement in libraries(files):
            with suppress(Exception):  # what is not installed is met by the test that needs it
                exec(statement, {})
    ours = [name for name in sys.modules if name.partition(".")[0] in PACKAGES]
    if ours:
        raise RuntimeError(f"a library imports what is to be changed: {ours}")


def in_parallel(work: Callable[[int], None], workers: int) -> None:
    """``work(0)``, ``work(1)``, ... in processes of their own."""
    children = []
    for worker in range(workers):
        pid = os.fork()
        if pid:
            children.append(pid)
            continue
        code = 1
        try:
            work(worker)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    ended = [os.waitpid(pid, 0)[1] for pid in children]  # all of them, also where the first has failed
    if any(ended):
        raise SystemExit("the run has failed")


def judged(options: argparse.Namespace, file: Path) -> list[dict[str, Any]]:
    """Judge mutants of the sample, and append each to the file."""
    drawn = list(islice(of_sample(options), options.skip, options.skip + options.mutants))
    prepare(sorted({test for mutant in drawn for stage in nearest(mutant.path) for test in stage}))
    os.chdir(ROOT)
    collected(
        [list(stage) for stage in sorted({tuple(stage) for mutant in drawn for stage in nearest(mutant.path)})], options.workers
    )
    end = time.monotonic() + 60 * options.minutes

    def work(worker: int) -> None:
        for i in range(worker, len(drawn), options.workers):
            if time.monotonic() > end:
                break
            start = time.monotonic()
            outcome, by = judge(drawn[i], nearest(drawn[i].path), options.seconds)
            row = dict(number=i, outcome=outcome, by=by, seconds=round(time.monotonic() - start, 1), **vars(drawn[i]))
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")

    in_parallel(work, options.workers)
    rows = read(file)
    confirm(rows, options.workers)
    return rows


def collected(stages: list[list[str]], workers: int) -> None:
    """Without any mutant each set of files is collected without an error; with one, such an error counts as noticed."""

    def work(worker: int) -> None:
        for files in stages[worker::workers]:
            outcome, by = judge(None, [files], 3600, only=("--collect-only",))
            if outcome != "survived":
                raise RuntimeError(f"tests cannot be collected without any mutant, {outcome}: {' '.join(files)} {by}")

    in_parallel(work, workers)


def confirm(rows: list[dict[str, Any]], workers: int) -> None:
    """Each test that has killed a mutant passes without any."""
    killers = sorted({row["by"] for row in rows if "::" in row["by"]})

    def work(worker: int) -> None:
        part = killers[worker::workers]
        outcome, by = judge(None, [part] if part else [], 3600)
        if outcome != "survived":
            raise RuntimeError(f"a test fails without any mutant: {by}")

    in_parallel(work, workers)


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


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
    for group in sorted(groups, key=lambda g: (g == "all", g not in PACKAGES, g)):
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
    parser.add_argument("packages", nargs="*", default=list(PACKAGES), help="folders or files, by default layers and zoo")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--mutants", type=int, default=10_000, help="at most")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first ones of the sample")
    parser.add_argument("--minutes", type=float, default=50, help="begin no mutant later than that")
    parser.add_argument("--seconds", type=float, default=60, help="of tests in each of two stages, of the processor")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--again", metavar="FILE", help="no run: the table of an earlier one, with the list as it is now")
    return parser.parse_args(arguments)


def main() -> None:
    options = parsed()
    sys.path.insert(0, str(ROOT))
    reasons = listed(mutants.sources(ROOT, PACKAGES))
    if options.again:
        file = Path(options.again)
        rows = read(file)
    else:
        KEPT.mkdir(parents=True, exist_ok=True)
        file = KEPT / f"seed-{options.seed}-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
        rows = judged(options, file)
    print(table(rows, reasons))
    print(f"\nseed {options.seed}, {file}")


if __name__ == "__main__":
    main()
