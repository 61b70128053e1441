"""Answers that a model finds: of all spans of a context, in all of its windows, those with the largest sums of two logits.

The score of no answer is the sum at `cls`, of the window where it is least: the answer needs to be in one of them only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tasks.data.answer_windows import Window, cut
from tasks.data.questions import Question
from tasks.span_models import outputs
from tasks.text_models import Reader


class Answer(NamedTuple):
    """A part of the context, from `start` to `end` in characters; "" with None for no answer. score: a probability."""

    text: str
    score: float
    start: int | None
    end: int | None


class Answered(NamedTuple):
    """The likeliest answers, best first, "" among them; nothing: how much larger the sum of no answer is than the best one."""

    answers: list[Answer]
    nothing: float

    @property
    def best(self) -> str:
        """The likeliest answer that is one; "" where there is none at all."""
        return next((x.text for x in self.answers if x.text), "")

    def chosen(self, threshold: float) -> Answer:
        """The best answer, or none where `nothing` is more than the threshold."""
        silent = self.nothing > threshold
        return next((x for x in self.answers if bool(x.text) is not silent), Answer("", 1.0, None, None))


def answer(
    reader: Reader, questions: Sequence[Question], *, n_best: int = 5, max_answer: int = 30, batch_size: int = 32
) -> list[Answered]:
    """max_answer: tokens of an answer at most."""
    config = reader.model.config
    cuts = cut(reader.tokenizer, questions, config["context"], config["overlap"])
    said = iter(outputs(reader, [window for windows in cuts for window in windows], batch_size, typed=True))
    found = []
    for question, windows in zip(questions, cuts, strict=True):
        spans, nothing = {}, math.inf
        for window in windows:
            start, end = (x.double().numpy() for x in next(said))
            nothing = min(nothing, float(start[0] + end[0]))
            for place, score in best_spans(window, start, end, question.context, n_best, max_answer):
                spans[place] = max(score, spans.get(place, -math.inf))
        found.append(ranked(question.context, spans, nothing, n_best))
    return found


def best_spans(
    window: Window, start: np.ndarray, end: np.ndarray, context: str, n_best: int, max_answer: int
) -> list[tuple[tuple[int, int], float]]:
    """The n spans with the largest sums among all whose tokens are of the context, in order, and at most `max_answer` many."""
    width = len(window.places)
    sums = start[window.start : window.end, None] + end[None, window.start : window.end]
    sums = np.where(np.tri(width, width, max_answer - 1, bool) & ~np.tri(width, width, -1, bool), sums, -np.inf)
    order = np.argsort(-sums, axis=None, kind="stable")[: 2 * n_best + 8]  # some are of the same characters
    found: dict[tuple[int, int], float] = {}
    for first, last in zip(*np.unravel_index(order, sums.shape), strict=True):
        place = trimmed(context, *window.characters(window.start + first, window.start + last))
        if place[0] < place[1] and np.isfinite(sums[first, last]):
            found.setdefault(place, float(sums[first, last]))
    return [*found.items()][:n_best]


def trimmed(context: str, start: int, end: int) -> tuple[int, int]:
    """Without spaces at either side, which tokens may hold."""
    part = context[start:end]
    return start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())


def ranked(context: str, spans: dict[tuple[int, int], float], nothing: float, n_best: int) -> Answered:
    """Scores are the softmax over the n best spans and no answer."""
    best = sorted(spans.items(), key=lambda item: (-item[1], item[0]))[:n_best]
    sums = np.array([nothing, *(score for _, score in best)])
    weights = np.exp(sums - sums.max())
    shares = (weights / weights.sum()).tolist()
    rows = [Answer(context[a:b], share, a, b) for ((a, b), _), share in zip(best, shares[1:], strict=True)]
    rows.append(Answer("", shares[0], None, None))
    return Answered(sorted(rows, key=lambda x: -x.score), nothing - best[0][1] if best else math.inf)


def measured(questions: Sequence[Question], found: Sequence[Answered], threshold: float) -> dict[str, float]:
    """Exact match and F1 with this threshold."""
    from tasks.answer_scores import scores

    return scores([one.chosen(threshold).text for one in found], [x.texts for x in questions])


def threshold_for(questions: Sequence[Question], found: Sequence[Answered]) -> float:
    """The one that is best for F1; where all questions have answers one that answers all."""
    from tasks.answer_scores import best_threshold

    if all(x.answers for x in questions):
        return 1e9
    return best_threshold([x.best for x in found], [x.nothing for x in found], [x.texts for x in questions]).value


def row(question: Question, found: Answered, threshold: float) -> dict[str, Any]:
    chosen = found.chosen(threshold)
    shown = [{"answer": x.text, "score": round(x.score, 6), "start": x.start, "end": x.end} for x in found.answers]
    return {
        "id": question.id, "question": question.question, "answer": chosen.text, "score": round(chosen.score, 6),
        "start": chosen.start, "end": chosen.end, "nbest": shown,
    }  # fmt: skip
