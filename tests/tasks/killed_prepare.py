"""`corpus.prepare`, which kills itself: ``PLACE FOLDER``."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.data import corpus
from tasks.data.tokenizer import train_tokenizer
from zoo import files


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(words: list[str]) -> int:
    place, folder = words
    corpus.CHUNK = 10
    original = files.write_json

    def pairs() -> Iterator[tuple[str, str]]:
        for n in range(100):
            if place == "middle" and n == 60:
                die()
            yield f"{n} Tage", f"{n} days"

    def write_json(path: Path, data: Any) -> None:
        if place == "before meta":
            die()
        original(path, data)
        die()

    files.write_json = write_json
    tokenizer = train_tokenizer(["0123456789 Tage days"], "char", 300)
    corpus.prepare(folder, {"train": pairs()}, tokenizer, tokenizer)
    return 0
