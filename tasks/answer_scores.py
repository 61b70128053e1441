"""How right answers are, as the official scripts of SQuAD 1.1 and 2.0 count: exact match, F1 of words, the best threshold.

Rajpurkar et al., 2016 (arXiv 1606.05250) and 2018 (arXiv 1806.03822). Case, punctuation, the articles a, an and the, and spaces
do not count. Of several right answers the nearest counts; of a question without an answer the right one is "".
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)


def normalised(answer: str) -> str:
    """Lower case, without ASCII's punctuation, then without articles, one space between words."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def exact(answer: str, right: str) -> float:
    return float(normalised(answer) == normalised(right))


def f1(answer: str, right: str) -> float:
    """Of words, each as often as it is there. Where one side has none, 1 if neither has."""
    one, other = normalised(answer).split(), normalised(right).split()
    if not one or not other:
        return float(one == other)
    common = (Counter(one) & Counter(other)).total()
    return 2 * common / (len(one) + len(other))


def gold(answers: Sequence[str]) -> list[str]:
    """Right answers that have words; [""] where there is none."""
    return [answer for answer in answers if normalised(answer)] or [""]


class Measured(NamedTuple):
    """Of one answer, from 0 to 1."""

    exact: float
    f1: float


def measure(answer: str, answers: Sequence[str]) -> Measured:
    """answers: all right ones, none of a question without an answer."""
    right = gold(answers)
    return Measured(max(exact(answer, x) for x in right), max(f1(answer, x) for x in right))


def scores(found: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """exact and f1, the means from 0 to 1, then those of questions with an answer and without, where there are such."""
    rows = [(measure(one, right), gold(right) != [""]) for one, right in zip(found, answers, strict=True)]
    parts = {
        "": [m for m, _ in rows],
        "has_answer_": [m for m, has in rows if has],
        "no_answer_": [m for m, has in rows if not has],
    }
    parts = {name: part for name, part in parts.items() if part and (not name or len(part) < len(rows))}
    return {
        f"{name}{key}": sum(getattr(m, key) for m in part) / len(part) for name, part in parts.items() for key in ("exact", "f1")
    }


class Threshold(NamedTuple):
    """Where `value` is exceeded, no answer is given; the mean of a score that this gives."""

    value: float
    score: float


def best_threshold(
    found: Sequence[str], nothing: Sequence[float], answers: Sequence[Sequence[str]], key: str = "f1"
) -> Threshold:
    """The threshold that is best for `key`, "exact" or "f1": one of the numbers of `nothing`, or less than all of them.

    found:   the likeliest answer of each question that is one, "" where there is none at all.
    nothing: how much likelier it is that there is no answer, any numbers.
    Of equally good thresholds the least one, which leaves most questions without an answer. As SQuAD 2.0's script has it, which
    takes `nothing` for probabilities: it begins with a threshold of 0, ours with one that no number is below; and it may cut
    between questions of the same number, which no threshold can.
    """
    require_same_length(found, nothing, answers)
    none = [not right for right in answers]
    best = current = float(sum(none))
    order = sorted(range(len(found)), key=lambda n: nothing[n])
    value = (nothing[order[0]] if order else 0.0) - 1.0
    for n, following in zip(order, [*order[1:], None], strict=True):
        # from here on the question is answered: what that gives, less what silence gave
        current += -float(found[n] != "") if none[n] else getattr(measure(found[n], answers[n]), key)
        if current > best and (following is None or nothing[following] > nothing[n]):
            best, value = current, nothing[n]
    return Threshold(value, best / max(len(found), 1))


def require_same_length(*rows: Sequence[object]) -> None:
    if len({*map(len, rows)}) > 1:
        raise ValueError(f"answers, numbers and right answers must be as many, got {', '.join(str(len(row)) for row in rows)}")


def summary(measured: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in measured.items())
