"""Use a model that `tasks.question_answering` has trained: answer questions, and measure how well it does."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.commands import checking_input
from tasks.options import Options, UserError, data_of, option, restored
from tasks.saved import find_run
from tasks.span_models import UseOptions
from tasks.tables import FILES, require_table, writing

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from tasks.data.questions import Question

PROGRAM = "tasks.question_answering"
SQUAD = "JSON files as SQuAD's, 1.1 or 2.0"
CHUNK = 256
"""Questions that are read, answered and written at a time."""


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
    """Questions to answer, `CHUNK` at a time. Errors: `UserError` and `DataError` that name file and line."""
    from tasks.data import questions
    from tasks.data.text_files import decoded, lines

    if options.question:
        yield [questions.Question("1", options.question, options.context)]
        return
    if options.input != "-" and not Path(options.input).is_file():
        raise UserError(f"--input {options.input} is not there: a file of questions is expected")
    if Path(options.input).name.removesuffix(".gz").endswith(".json"):
        found = questions.read([options.input])
        yield from (found[start : start + CHUNK] for start in range(0, len(found), CHUNK))
        return
    chunk: list[Question] = []
    rows = decoded(sys.stdin.buffer, "standard input") if options.input == "-" else lines(Path(options.input))
    for number, line in enumerate(rows, 1):
        if line.strip():
            chunk.append(of_json(line, number, options.input))
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


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

    options = EvaluateOptions(**given)
    require_table("--output", options.output)
    reader, precision = options.load()
    notes: list[str] = []
    test = questions.read(options.test, notes) if options.test else test_of(options)
    threshold = reader.model.config["threshold"] if options.threshold is None else options.threshold
    with precision, writing(options.output) as put:
        found = answer(reader, test, n_best=options.n_best, max_answer=options.max_answer, batch_size=options.batch_size)
        put(row(*pair, threshold) | {"right": pair[0].texts} for pair in zip(test, found, strict=True))
    print(*notes, sep="\n", end="\n" if notes else "")
    print(f"{summary(measured(test, found, threshold))}: {len(test):,} questions, threshold {threshold:.4g}")


def test_of(options: EvaluateOptions) -> list[Question]:
    """The test questions of a run. Errors: `UserError` if they are no longer what they were."""
    from tasks.question_answering import TrainOptions, identity, load
    from zoo.files import read_json

    folder = find_run(options, "best.safetensors")
    saved = read_json(folder / "options.json")
    run = restored(TrainOptions, saved, folder)
    kept = (data_of(saved) or {}).get("test")
    splits = load(run)[0] if kept else {}
    if not kept or kept != identity(splits)["test"]:
        raise UserError(f"{folder}: the test questions are not those of the run any more: give questions by --test")
    return splits["test"]
