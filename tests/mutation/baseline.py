"""What each test runs: its seconds, and the lines of `layers/` and `zoo/` that are executed in it, by coverage.py."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".cache" / "mutation"
LEFT_OUT = "not slow and not processes"
"""What compiles or starts processes would take hours: the score is a lower bound."""
OPTIONS = ("-q", "-n0", "-x", "-p", "no:cacheprovider", "--hypothesis-profile=few", "--durations=0", "-m", LEFT_OUT)


def state(folder: str) -> str:
    """Of all sources and tests that the lines are about."""
    digest = hashlib.sha256()
    for part in ("layers", "zoo", folder, "tests/shared"):
        for file in sorted((ROOT / part).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


class Recorder:
    """A pytest plugin: every test is a context of its own."""

    def __init__(self, coverage: Any) -> None:
        self.coverage, self.seconds, self.failed = coverage, {}, []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self.coverage.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self.coverage.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.passed:
            self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        elif report.failed:
            self.failed.append(report.nodeid)


def record(folder: str) -> None:
    """Run the tests of a folder in this process, which must not have imported `layers` yet."""
    from coverage import Coverage

    KEPT.mkdir(parents=True, exist_ok=True)
    coverage = Coverage(
        data_file=None, config_file=False, source=["layers", "zoo"], omit=["*/layers/testing/*"], concurrency="thread"
    )
    recorder = Recorder(coverage)
    coverage.start()
    options = [option for option in OPTIONS if option != "-x"]
    pytest.main([str(ROOT / folder), "--ignore", str(ROOT / "tests/layers/testing"), *options], plugins=[recorder])
    coverage.stop()
    names = [name for name in recorder.seconds if name not in recorder.failed]
    number = {name: i for i, name in enumerate(names)}
    data, lines = coverage.get_data(), {}
    for file in data.measured_files():
        by_line = data.contexts_by_lineno(file).items()
        found = {n: sorted(number[c] for c in contexts if c in number) for n, contexts in by_line}
        lines[str(Path(file).relative_to(ROOT))] = found
    missing = {}
    for file in lines:
        _, _, _, not_run, _ = coverage.analysis2(str(ROOT / file))
        missing[file] = not_run
    outside = sorted(name for name, module in list(sys.modules.items()) if name.isidentifier() or is_outside(module))
    kept = dict(
        state=state(folder), tests=recorder.seconds, names=names, failed=recorder.failed, lines=lines, missing=missing,
        modules=[name for name in outside if is_outside(sys.modules.get(name))],
    )  # fmt: skip
    path(folder).write_text(json.dumps(kept), encoding="utf-8")


def is_outside(module: Any) -> bool:
    """Whether a module is of an installed package: it may be imported once for all mutants."""
    file = getattr(module, "__file__", None)
    return bool(file) and "site-packages" in file and "__editable__" not in file


def path(folder: str) -> Path:
    return KEPT / (folder.replace("/", "-") + ".json")


def load(folder: str, old: bool = False) -> dict[str, Any]:
    """What is kept of an earlier run, of these very sources unless `old` ones will do; else a new run, in another process."""
    if not (path(folder).exists() and (old or json.loads(path(folder).read_text())["state"] == state(folder))):
        print(f"which test runs which line: {folder}, some minutes", flush=True)
        pid = os.fork()
        if not pid:
            try:
                record(folder)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
    kept = json.loads(path(folder).read_text())
    if kept["failed"]:
        raise SystemExit(f"tests fail without any mutant: {kept['failed']}")
    return kept


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    record(sys.argv[1])
