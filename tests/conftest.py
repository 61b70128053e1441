"""Two workers of one thread each, for small tensors wait at barriers longer than they compute.

`OMP_NUM_THREADS` gives another number of threads, `-n 0` runs in one process. Plain `pytest` leaves out what starts processes or
compiles; with `--hypothesis-profile=ci` or `few`, as in tox, and where a file or a test is named, nothing is left out.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here, in the workers and in what they start
CACHE = "" if "TORCHINDUCTOR_CACHE_DIR" in os.environ else tempfile.mkdtemp(prefix="inductor-")
"""Of this run and all of its workers: what inductor kept of another run may be for another `ATEN_CPU_CAPABILITY`."""
if CACHE:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = CACHE

collect_ignore = ["others"]
"""Not of the suite: `tox -e others` names it, for it needs libraries of certain versions."""
TOGETHER = (
    "tests/tasks/", "tests/layers/testing/test_draft.py", "tests/layers/testing/test_page.py",
    "tests/layers/testing/test_plugin.py", "tests/test_readme.py", "tests/test_packaging.py", "tests/test_notebooks.py",
    "tests/zoo/pretrained/test_memory.py", "tests/mutation/",
)  # fmt: skip
"""Where tests start processes: one after another, by one worker."""
COMPILED = ("tests/zoo/deployment/test_compiled_", "tests/zoo/deployment/test_optimize.py")
"""Files whose tests share what took up to minutes to compile: each by one worker, lest another compile the same."""


def pytest_configure(config: pytest.Config) -> None:
    named = any("::" in argument or argument.endswith(".py") for argument in config.args)
    if not (named or config.option.markexpr) and config.getoption("--hypothesis-profile") == "dev":
        config.option.markexpr = "not processes and not slow"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What a contract compiles takes a sixth of all time: plain `pytest` leaves that out too."""
    for item in items:
        if item.name == "compile":
            item.add_marker("slow")


def pytest_unconfigure() -> None:
    if CACHE:
        shutil.rmtree(CACHE, ignore_errors=True)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Workers of `-n auto`, which pyproject.toml asks for: none where a single test is named, at most four, for memory."""
    return 0 if any("::" in argument for argument in config.args) else min(4, len(os.sched_getaffinity(0)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):  # not `--dist loadgroup`, whose groups pytest 9.2 no longer sees
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(TOGETHER):
                return "processes"
            return nodeid.partition("::")[0] if nodeid.startswith(COMPILED) else nodeid

    return Scheduler(config, log)
