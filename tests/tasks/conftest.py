"""A tiny set of pictures, and the real command: in a fresh process, in two under torchrun, or in one that kills itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
TASK = "tasks.image_classification"

BOMB = """
# argv: place, count, task, then the command's own; strikes at the count-th step, or write or rename of last.safetensors
import os, resource, runpy, signal, sys
from tasks import engine
from zoo import files

place, count = sys.argv.pop(1), int(sys.argv.pop(1))
owner, name = {"write": (os, "fsync"), "rename": (os, "replace")}.get(place, (engine.Run, "train_step"))
original, calls = getattr(owner, name), 0

def concerns(where, *_):
    path = os.readlink(f"/proc/self/fd/{where}") if place == "write" else where
    return name == "train_step" or "last.safetensors" in str(path)

def strike(*arguments):
    global calls
    calls += concerns(*arguments)
    if calls == count and place == "disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    elif calls == count and concerns(*arguments):
        if place == "write":
            os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)

setattr(owner, name, strike)
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def write_pictures(folder: Path, counts: dict[str, int], size: int = 32, seed: int = 0) -> Path:
    """`folder/CLASS/N.png`: noise around a brightness that tells the class."""
    draw = np.random.default_rng(seed)
    for level, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for n in range(count):
            pixels = (draw.integers(0, 120, (size, size, 3)) + 60 * level).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{n:02}.png")
    return folder


@pytest.fixture(scope="session")
def make_pictures() -> Callable[..., Path]:
    return write_pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 training images, so that batches of 6 end on one of 1, and 5 test images of two classes."""
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder / "train", {"dark": 7, "light": 6})
    write_pictures(folder / "test", {"dark": 3, "light": 2}, seed=1)
    return folder


Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def launch() -> Command:
    """Run ``python *launcher *arguments`` in the project's root, one thread, no terminal."""

    def run(*arguments: object, launcher: tuple[object, ...] = ("-m", TASK)) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        words = [sys.executable, *map(str, launcher), *map(str, arguments)]
        return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture(scope="session")
def bombed(launch: Command) -> Command:
    """The command, killed at the count-th "step", "write" (half done) or "rename", or its "disk" full from a step on."""
    return lambda place, count, *arguments, task=TASK: launch(*arguments, launcher=("-c", BOMB, place, count, task))


@pytest.fixture(scope="session")
def torchrun(launch: Command) -> Command:
    """The command in two processes."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", TASK)
    return lambda *arguments: launch(*arguments, launcher=launcher)
