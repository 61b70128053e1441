"""Trained models as a server uses them: what a request may ask, checked before it waits, and how a batch of it is answered.

Loading, reading and answering are those of the commands that use a run, `predict`, `translate`, `generate` and `sample`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tasks.options import UserError
from tasks.saved import program_of
from tasks.serving.schemas import Schema


class BadInput(Exception):
    """What a client can mend, in one sentence."""


@dataclass
class Served:
    """A run, loaded. What `read` gives of an input goes into `answer`, many at a time, in one thread.

    text: most characters of a text. batch: inputs at a time.
    """

    task: ClassVar[str] = ""
    takes: ClassVar[str] = "a string"
    """An input, in words."""
    example: ClassVar[Any] = "a text"
    """An input that is right."""
    explains: ClassVar[bool] = False
    """Whether it tells why: what `read` gives then has a flag `explained`, and there is `explained_schema`."""
    quick: ClassVar[bool] = False
    """Whether `read` takes so little time that the event loop may do it."""
    sized: ClassVar[bool] = False
    """Whether the time of an answer has a bound, by the item's `size`: the event loop may compute a short one."""
    tensors: ClassVar[tuple[str, ...]] = ("text",)
    """Names of the strings that an input is made of, where it comes as tensors of strings."""
    folder: Path
    device: str
    precision: str
    text: int
    batch: int

    def __post_init__(self) -> None:
        self.load()

    def options(self, kind: type, **more: Any) -> Any:
        place = {"name": self.folder.name, "runs_dir": str(self.folder.parent)}
        return kind(**place, device=self.device, precision=self.precision, **more)

    def load(self) -> None:
        raise NotImplementedError

    def about(self) -> dict[str, Any]:
        """What a page needs to know, beside the task."""
        return {}

    def schemas(self) -> tuple[Schema, Schema]:
        """Of an input, and of an output."""
        raise NotImplementedError

    def explained_schema(self) -> Schema:
        """Of an output that is explained."""
        raise NotImplementedError

    def read(self, value: Any) -> Any:
        """An input, as it came in JSON or as bytes, for `answer`. Errors: `BadInput`, `UserError`."""
        raise NotImplementedError

    def from_tensors(self, *strings: str) -> Any:
        """The input that `read` takes, of a string for each name of `tensors`."""
        return strings[0] if len(strings) == 1 else [*strings]

    def answer(self, items: Sequence[Any]) -> list[Any]:
        raise NotImplementedError

    def size(self, item: Any) -> int:
        """Of an item, if the model is `sized`: what its time grows with, as `Batcher` takes it."""
        raise NotImplementedError

    def string(self, value: Any, name: str = "") -> str:
        if not isinstance(value, str):
            raise BadInput(f"{name or 'an input'} must be {'a string' if name else self.takes}, got {shown(value)}")
        if len(value) > self.text:
            raise BadInput(f"{name or 'an input'} must have {self.text:,} characters at most, got {len(value):,}")
        return value


def shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


PROGRAMS = {
    "tasks.image_classification": "pictures.Pictures",
    "tasks.text_classification": "texts.Texts",
    "tasks.token_classification": "texts.Tokens",
    "tasks.question_answering": "texts.Questions",
    "tasks.translation": "texts.Translations",
    "tasks.text_generation": "writing.Generations",
    "tasks.image_generation": "pictures.Images",
}
"""Whose runs are served, and by which class of this room."""


def load(path: str, **options: Any) -> Served:
    """The model of a run's folder. Errors: `UserError` and `ValueError` for what is none, or of no task that is served."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{path} is not there: the folder of a run is expected, such as runs/NAME")
    folder = folder.resolve()
    program = program_of(folder)
    if program not in PROGRAMS:
        of = f"a run of {program}" if program else "no run"
        raise UserError(f"{path} is {of}: runs of {', '.join(name.removeprefix('tasks.') for name in PROGRAMS)} are served")
    module, _, kind = PROGRAMS[program].partition(".")
    model = getattr(importlib.import_module(f"tasks.serving.{module}"), kind)(folder=folder, **options)
    from zoo.files import first_line

    try:
        require_working(model)
    except Exception as error:
        raise UserError(f"{path}: the model fails on an example: {first_line(error)}") from error
    return model


def require_working(model: Served) -> None:
    """One example is answered, before others ask; what is damaged is found now."""
    try:
        item = model.read(model.example)
    except (BadInput, UserError):  # longer than --max_text, or than the model's context
        return
    (found,) = model.answer([item])
    if isinstance(found, Exception):
        raise found
