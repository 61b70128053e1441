"""Questions as a model reads them: ``cls question sep context sep``, a long context in overlapping windows.

The answer of a window is the tokens that hold it, where all of them are in the window; in every other one it is `cls`, which
stands for no answer. RoBERTa has two `sep` between question and context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tasks.data import DataError
from tasks.data.alignment import Place, pieces
from tasks.data.overlaps import windows
from tasks.data.questions import Question
from tasks.data.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Window:
    """A row of tokens and token types; of the context the characters of each token, which begin in the row at `start`.

    answer: first and last token in the row, (0, 0) for none.
    """

    ids: list[int]
    types: list[int]
    start: int
    places: list[Place] = field(repr=False)
    answer: tuple[int, int] = (0, 0)

    @property
    def end(self) -> int:
        """Where the context has ended."""
        return self.start + len(self.places)

    def characters(self, first: int, last: int) -> Place:
        """Where the characters of tokens in the row start and end in the context."""
        return self.places[first - self.start][0], self.places[last - self.start][1]


def cut(
    tokenizer: TextTokenizer, questions: Sequence[Question], context: int, overlap: int, longest: int | None = None
) -> list[list[Window]]:
    """The windows of each question, one at least.

    context: tokens of a window at most. overlap: tokens of the context that neighbours share, no more than half of what fits.
    longest: tokens that are kept of a question, by default as many as leave a context half of the window.
    """
    cls, sep = tokenizer.cls, tokenizer.sep
    between = [sep, sep] if tokenizer.inner.id_to_token(cls) == "<s>" and tokenizer.inner.id_to_token(sep) == "</s>" else [sep]
    room = context - 2 - len(between)
    if room < 2:
        raise DataError(f"a context of {context} tokens is too short for a question and what it is about")
    longest = room // 2 if longest is None else min(longest, room // 2)
    asked = [ids[:longest] for ids, _ in pieces(tokenizer, [x.question for x in questions])]
    texts = {x.context: n for n, x in reversed([*enumerate(questions)])}  # many questions share one
    read = dict(zip(texts, pieces(tokenizer, [*texts]), strict=True))
    found = []
    for x, question in zip(questions, asked, strict=True):
        ids, places = read[x.context]
        head = [cls, *question, *between]
        width = context - len(head) - 1
        rows = []
        for start, end in windows(len(ids), width, min(overlap, width // 2)):
            types = [0] * len(head) + [1] * (end - start + 1)
            window = Window([*head, *ids[start:end], sep], types, len(head), places[start:end])
            rows.append(Window(window.ids, types, window.start, window.places, answer_in(window, x.answers[:1])))
        found.append(rows)
    return found


def answer_in(window: Window, answers: Sequence[Place]) -> tuple[int, int]:
    """First and last token in the row of the first answer, (0, 0) where the window does not hold all of it."""
    for start, end in answers:
        held = [n for n, (a, b) in enumerate(window.places) if max(a, start) < min(b, end)]
        if held and window.places[held[0]][0] <= start and window.places[held[-1]][1] >= end:
            return window.start + held[0], window.start + held[-1]
    return 0, 0
