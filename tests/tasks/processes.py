"""A command in a process of its own, which is forked from one that has imported torch already: it costs its work, no imports."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch.distributed as dist

ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
PRELOADED = ["pytest", "processes", "toys", "tasks.runs", "tasks.plots", "tasks.image_classification", "tasks.translation",
             "tasks.image_task", "tasks.data.parallel", "torchvision.transforms.v2", "sklearn.metrics", "sacrebleu",
             "tokenizers", "torch.distributed.nn"]  # fmt: skip


STORE = "STORE_OF_THE_TESTS"


class Done(NamedTuple):
    """How a command ended; with several ranks, the first that went wrong."""

    returncode: int | None
    stdout: str
    stderr: str


def start(folder: Path, task: str, words: list[str], blow: tuple[str, int] | None = None, rank: Mapping[str, str] | None = None):
    """The process, which has begun; what it says goes to `folder`/out and err."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "PYTHONPATH": PATH}):
        forkserver.ensure_running()
    folder.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=work, args=(folder, task, words, blow, dict(rank or {})))
    process.start()
    return process


def finish(process: Any, folder: Path) -> Done:
    process.join(300)
    if process.exitcode is None:
        process.kill()
        process.join()
    return Done(process.exitcode, (folder / "out").read_text(), (folder / "err").read_text())


def ranks(number: int, store: Path) -> list[dict[str, str]]:
    """What torchrun tells each of its processes, and the file by which they find each other, which is not there yet."""
    shared = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), STORE: str(store)}
    return [{**shared, "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(number)]


def work(folder: Path, task: str, words: list[str], blow: tuple[str, int] | None, rank: dict[str, str]) -> None:
    """In the new process: `task.main(words)`, whose result is the exit code."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(rank)
    if rank:  # before accelerate does it, by a port that somebody else may have taken
        where = f"file://{rank[STORE]}"
        dist.init_process_group("gloo", where, world_size=int(rank["WORLD_SIZE"]), rank=int(rank["RANK"]))
    if blow:
        strike(*blow)
    sys.exit(importlib.import_module(task).main(words))


def strike(place: str, count: int) -> None:
    """SIGKILL at the count-th "step", "write" (half done) or "rename" of last.safetensors; or a full "disk" from a step on."""
    from tasks import engine

    owner, name = {"write": (os, "fsync"), "rename": (os, "replace")}.get(place, (engine.Run, "train_step"))
    original, calls = getattr(owner, name), 0

    def concerns(where: Any, *_: Any) -> bool:
        path = os.readlink(f"/proc/self/fd/{where}") if place == "write" else where
        return name == "train_step" or "last.safetensors" in str(path)

    def struck(*arguments: Any) -> Any:
        nonlocal calls
        calls += concerns(*arguments)
        if calls == count and place == "disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
        elif calls == count and concerns(*arguments):
            if place == "write":
                os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    setattr(owner, name, struck)
