"""A tiny set of pictures, and the real commands: in this process, in others that may be killed, and under torchrun."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))  # `toys` and `processes`, which are no tests
import processes
from command import small

TASK = "tasks.image_classification"


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


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., processes.Done]:
    """A command in a process of its own, or in several ranks; `blow` is when it kills itself, as `processes.strike` says.

    victim: the rank that it hits, by default each.
    """

    def run(
        *words: object, task: str = TASK, ranks: int = 1, blow: tuple[str, int] | None = None, victim: int | None = None
    ) -> processes.Done:
        folders = [tmp_path_factory.mktemp("said") for _ in range(ranks)]
        told = processes.ranks(ranks, folders[0] / "store") if ranks > 1 else [{}]
        blows = [blow if victim in (None, n) else None for n in range(ranks)]
        given = zip(folders, blows, told, strict=True)
        started = [processes.start(f, task, [*map(str, words)], hit, rank) for f, hit, rank in given]
        done = [processes.finish(*pair) for pair in zip(started, folders, strict=True)]
        return max(done, key=lambda one: one.returncode != 0)

    return run


@pytest.fixture(scope="session")
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``python *words`` in the project's root, one thread, no terminal: for what depends on imports, and on torchrun."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(processes.ROOT)}
        command = [sys.executable, *map(str, words)]
        return subprocess.run(command, cwd=processes.ROOT, env=environment, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture(scope="session")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run of two epochs, and what it said."""
    from tasks.image_classification import main

    runs = tmp_path_factory.mktemp("runs")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main([*small(pictures, runs), "--epochs", "2"]) == 0
    return runs / "a", said.getvalue()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny run of each task that is served, by name."""
    from served_runs import train

    return train(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def loaded(served: dict[str, Path]):
    """A server of them all, which has not begun."""
    pytest.importorskip("starlette", reason="serving needs zooproof[serving]")
    from tasks.serve import ServeOptions, server_of

    return server_of(ServeOptions(run=[str(path) for path in served.values()], device="cpu", max_wait_ms=1.0, max_text=500))


@pytest.fixture
def stopped(finished: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the finished run, which the test may damage."""
    folder = tmp_path / "a"
    folder.mkdir()
    for name in ("options.json", "config.json", "metrics.jsonl", "last.safetensors", "best.safetensors"):
        (folder / name).write_bytes((finished[0] / name).read_bytes())
    return folder


@pytest.fixture
def start(tmp_path):
    """A run of a toy that has not begun; accelerate's shared state does not outlive the test."""
    from accelerate.state import AcceleratorState
    from toys import Sentences, network

    from tasks.engine import Run
    from tasks.options import EngineOptions

    def build(task=None, model=None, **options) -> Run:
        settings = EngineOptions(**{"device": "cpu", "warmup": 0, **options})
        return Run(task or Sentences(), model or network(), settings, tmp_path)

    yield build
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that were written, so that a test can ask what they show."""
    from tasks import plots

    figures: list[Figure] = []
    write = plots.write

    def remember(figure: Figure, path: Path) -> list[str]:
        figures.append(figure)
        return write(figure, path)

    monkeypatch.setattr(plots, "write", remember)
    return figures


@pytest.fixture
def sketched(monkeypatch) -> list[Figure]:
    """The same, without the time that drawing takes."""
    from tasks import plots

    figures: list[Figure] = []
    monkeypatch.setattr(plots, "write", lambda figure, path: figures.append(figure))
    return figures
