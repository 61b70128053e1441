"""All exhibits, and the page about them: `PYTHONPATH=.:tests/shared:tests/museum python -m catalogue` writes it."""

from __future__ import annotations

from pathlib import Path

import attention_exhibits
import convolution_exhibits
import generation_exhibits
import position_exhibits
import recurrent_exhibits
import wiring_exhibits
from exhibit import Exhibit, plain

ROOMS = {
    "Attention, masks, caches": attention_exhibits.EXHIBITS,
    "Positions": position_exhibits.EXHIBITS,
    "Norms, embeddings, wiring": wiring_exhibits.EXHIBITS,
    "Networks of images": convolution_exhibits.EXHIBITS,
    "Recurrent networks": recurrent_exhibits.EXHIBITS,
    "Diffusion": generation_exhibits.NOISE,
    "Decoding": generation_exhibits.TOKENS,
    "Training": generation_exhibits.TRAINING,
}
EXHIBITS = tuple(exhibit for room in ROOMS.values() for exhibit in room)
PAGE = Path(__file__).parents[2] / "docs" / "museum.md"
BEFORE = """# Museum of bugs

Bugs put back into this project's code, one at a time: `tests/museum/`. {seen} have been seen elsewhere, in the public threads
that are linked; where it says "cf.", the bug is our own, and the thread is about a related one. Each of all {count} must turn the
named test red: a property of the block's contract, which knows nothing about the bug, within at most 40 drawn configurations; or,
where no contract says it, a plain test of a law. Without the bug the same test is green.

`pytest tests/museum/test_museum.py` repeats all.
"""


def link(thread: str) -> str:
    repository, _, number = thread.partition("#")
    return f"[{thread}](https://github.com/{repository}/issues/{number})"


def caught_by(exhibit: Exhibit) -> str:
    path, _, name = exhibit.proof.partition(":")
    return f"`{exhibit.property}` of `{name}`, `tests/{path}`" if exhibit.property else f"`{name}`, `tests/{path}`"


def row(exhibit: Exhibit) -> str:
    function = plain(exhibit.function)
    place = f"`{function.__module__}`: `{function.__qualname__}`"
    threads = "cf. " * exhibit.cf + ", ".join(map(link, exhibit.seen))
    return f"| {exhibit.name} | {exhibit.story} | {place} | {threads} | {caught_by(exhibit)} |"


def page() -> str:
    lines = [BEFORE.format(count=len(EXHIBITS), seen=sum(not exhibit.cf for exhibit in EXHIBITS))]
    for title, exhibits in ROOMS.items():
        head = ["| bug | what goes wrong | put into | seen in | caught by |", "| --- | --- | --- | --- | --- |"]
        lines += [f"## {title}\n", *head, *map(row, exhibits), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
