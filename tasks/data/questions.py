"""Questions about contexts, whose answers are parts of these: the JSON of SQuAD 1.1 and 2.0.

    {"data": [{"paragraphs": [{"context": ..., "qas": [{"id": ..., "question": ..., "answers": [{"text", "answer_start"}]}]}]}]}

A question without answers has none in its context; version 2.0 says "is_impossible" too. Of several answers all are right.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.data import DataError
from tasks.data.text_files import reading


@dataclass(frozen=True)
class Question:
    """answers: (start, end) in characters of the context, none where it has no answer."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[int, int], ...] = ()

    @property
    def texts(self) -> list[str]:
        return [self.context[start:end] for start, end in self.answers]


def read(paths: Sequence[str | Path], notes: list[str] | None = None) -> list[Question]:
    """The questions of files, in order. Errors: `DataError` that names file and question.

    notes: gets a line where an answer is not where the file says and one place alone is right, which is then taken.
    """
    found: list[Question] = []
    moved = 0
    for path in map(Path, paths):
        for question, shifted in read_file(path):
            found.append(question)
            moved += shifted
    if not found:
        raise DataError(f"{', '.join(map(str, paths))}: no questions in it")
    if moved and notes is not None:
        notes.append(f"{moved:,} answers are elsewhere than their answer_start says; they were found in their contexts")
    return found


def read_file(path: Path) -> Iterator[tuple[Question, int]]:
    if not path.is_file():
        raise DataError(f"{path} is {'a folder: give files' if path.is_dir() else 'not there'}")
    with reading(path) as file:
        raw = file.read()
    try:
        content = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON in UTF-8 ({error})") from error
    for a, article in enumerate(items(content, "data", str(path))):
        for p, paragraph in enumerate(items(article, "paragraphs", f"{path}, article {a + 1}")):
            place = f"{path}, article {a + 1}, paragraph {p + 1}"
            context = text(paragraph, "context", place)
            for q, row in enumerate(items(paragraph, "qas", place)):
                where = f"{place}, question {q + 1}"
                places = [answer(one, context, where) for one in items(row, "answers", where)]
                answers = tuple(place for place, _ in places)
                asked = text(row, "question", where)
                yield Question(str(row.get("id", f"{a}-{p}-{q}")), asked, context, answers), sum(x for _, x in places)


def items(row: Any, key: str, place: str) -> list[Any]:
    found = row.get(key) if isinstance(row, dict) else None
    if not isinstance(found, list):
        raise DataError(f'{place}: expected an object with "{key}", a list, as SQuAD has it')
    return found


def text(row: Any, key: str, place: str) -> str:
    found = row.get(key) if isinstance(row, dict) else None
    if not isinstance(found, str):
        raise DataError(f'{place}: expected an object with "{key}", a string, as SQuAD has it')
    return found


def answer(row: Any, context: str, place: str) -> tuple[tuple[int, int], bool]:
    """Where it is, and whether that is elsewhere than said."""
    said, start = text(row, "text", place), row.get("answer_start")
    if type(start) is not int or not said:
        raise DataError(f'{place}: an answer needs "text", not empty, and "answer_start", a whole number')
    if start >= 0 and context[start : start + len(said)] == said:
        return (start, start + len(said)), False
    if context.count(said) != 1:
        raise DataError(f"{place}: the answer {said[:60]!r} is not at {start} of its context")
    start = context.index(said)
    return (start, start + len(said)), True


def bytes_of(questions: Iterable[Question]) -> Iterator[bytes]:
    for x in questions:
        yield json.dumps([x.id, x.question, x.context, x.answers]).encode()
