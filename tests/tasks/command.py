"""The command `tasks.image_classification` on a few pictures, how it is refused, and how data are."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tasks
from tasks.data import DataError


def programs() -> dict[str, Any]:
    """Every module of `tasks` that has commands, by its name."""
    modules = [importlib.import_module(f"tasks.{found.name}") for found in pkgutil.iter_modules(tasks.__path__)]
    return {module.__name__: module for module in modules if hasattr(module, "COMMANDS")}


def small(pictures: Path, runs: Path, name: str = "a") -> list[str]:
    """13 images in steps of 6, 6 and 1, each in two micro-batches."""
    return f"""--data folder:{pictures} --image_size 32 --model resnet20 --batch_size 6 --accumulate 2 --device cpu
               --optimizer sgd --lr 0.01 --runs_dir {runs} --name {name}""".split()


def dies_in_its_second_epoch(patch: Any) -> None:
    """Runs, while this is patched, as if somebody stopped them."""
    from tasks.engine import Run

    def dies(self: Any, begun: float, real: Any = Run.train_epoch) -> None:
        if self.epoch == 1:
            raise KeyboardInterrupt
        real(self, begun)

    patch.setattr(Run, "train_epoch", dies)


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def refused(capsys: Any, runs: Path, *arguments: object) -> str:
    """The one line of a command that ends with exit code 2 and leaves the runs as they were."""
    from tasks.image_classification import main

    before = contents(runs)
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert code == 2, captured.out + captured.err
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert contents(runs) == before, "something is left behind, or was written over"
    return lines[0]


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def one_line(capsys: Any, main: Callable[..., int], *arguments: object) -> str:
    """The one line that a command ends with, whose exit code is 2."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: "), error
    assert error.count("\n") == 1, error
    return error


def complaint(call: Callable[..., Any], *arguments: object, **options: object) -> str:
    """The message, of one line, of the DataError that the call or its iteration raises."""
    with pytest.raises(DataError) as caught:
        exhaust(call(*arguments, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def exhaust(found: Any) -> None:
    if isinstance(found, Iterator):
        list(found)
