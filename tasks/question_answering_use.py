"""Use a model that `tasks.question_answering` has trained: answer questions, and measure how well it does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.commands import checking_input
from tasks.options import Options, UserError, option
from tasks.span_models import CHUNK, UseOptions, chunks, own_test
from tasks.tables import FILES, require_table, writing

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from tasks.data.questions import Question

PROGRAM = "tasks.question_answering"
SQUAD = "JSON files as SQuAD's, 1.1 or 2.0"


@dataclass
class AnswerOptions(Options):
    title = "answers"
    max_answer: int = option(30, "tokens of an answer, at most", least=1)
    n_best: int = option(5, "likeliest answers to tell", least=1, most=1000)


@dataclass
class PredictOptions(AnswerOptions, UseOptions):
    title, program = "questions", PROGRAM
    input: str = option(
        "-", 'a JSON object with "question" and "context" a line, or .json as SQuAD\'s; - is standard input', path=True
    )
    question: str = option("", "one question, in place of --input")
    context: str = option("", "what --question is about")
    threshold: float | None = option(None, "no answer where its score is so much larger than the best one's (default: the run's)")
    output: str = option("-", f"answer to each question: a {FILES}", path=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.question) != bool(self.context):
            raise UserError("--question and --context belong together: give both")


@dataclass
class EvaluateOptions(AnswerOptions, UseOptions):
    title, program = "questions", PROGRAM
    test: list[str] = option((), f"{SQUAD} (default: the test questions of the run)", many=True, path=True)
    threshold: float | None = option(None, "no answer where its score is so much larger than the best one's (default: the run's)")
    output: str = option("", f"answer to each question: a {FILES}", path=True)


@checking_input()
def predict(given: dict[str, Any]) -> None:
    from tasks.answering import answer, row

    options = PredictOptions(**given)
    require_table("--output", options.output)
    reader, precision = options.load()
    threshold = reader.model.config["threshold"] if options.threshold is None else options.threshold
    with precision, writing(options.output) as put:
        for questions in read(options):
            found = answer(reader, questions, n_best=options.n_best, max_answer=options.max_answer, batch_size=options.batch_size)
            put(row(*pair, threshold) for pair in zip(questions, found, strict=True))


def read(options: PredictOptions) -> Iterator[list[Question]]:
    """Questions to answer, some at a time. Errors: `UserError` and `DataError` that name file and line."""
    from tasks.data import questions

    if options.question:
        yield [questions.Question("1", options.question, options.context)]
        return
    if Path(options.input).is_file() and options.input.removesuffix(".gz").endswith(".json"):
        found = questions.read([options.input])
        yield from (found[start : start + CHUNK] for start in range(0, len(found), CHUNK))
    else:
        yield from chunks(options.input, lambda number, line: of_json(line, number, options.input) if line.strip() else None)


def of_json(line: str, number: int, name: str) -> Question:
    from tasks.data.questions import Question

    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in ("question", "context")):
        raise UserError(f'{name}, line {number}: expected an object with "question" and "context", strings, got {line[:60]!r}')
    return Question(str(found.get("id", number)), found["question"], found["context"])


@checking_input()
def evaluate(given: dict[str, Any]) -> None:
    from tasks.answer_scores import summary
    from tasks.answering import answer, measured, row
    from tasks.data import questions
    from tasks.question_answering import TrainOptions, identity, load

    options = EvaluateOptions(**given)
    require_table("--output", options.output)
    reader, precision = options.load()
    notes: list[str] = []
    test = questions.read(options.test, notes) if options.test else own_test(options, TrainOptions, load, identity)
    threshold = reader.model.config["threshold"] if options.threshold is None else options.threshold
    with precision, writing(options.output) as put:
        found = answer(reader, test, n_best=options.n_best, max_answer=options.max_answer, batch_size=options.batch_size)
        put(row(*pair, threshold) | {"right": pair[0].texts} for pair in zip(test, found, strict=True))
    print(*notes, sep="\n", end="\n" if notes else "")
    print(f"{summary(measured(test, found, threshold))}: {len(test):,} questions, threshold {threshold:.4g}")
