"""Use a classifier of texts that `tasks.text_classification` has trained: classify texts, measure it on labelled ones."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.commands import checking_input
from tasks.options import UserError, data_of, option, restored
from tasks.saved import SavedOptions, find_run, placed
from tasks.tables import FILES as TABLES
from tasks.tables import require_table, writing
from tasks.text_models import Reader, load_reader

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor

    from tasks.data.labelled import Labelled

PROGRAM = "tasks.text_classification"
FILES = ".csv, .tsv or .jsonl files of texts and labels"
COLUMNS = "of the text, or of two texts, and of the label, by name or number, such as question1,question2,label"
AHEAD = 16
"""So many batches are read, sorted by length and answered at a time."""


@dataclass
class UseOptions(SavedOptions):
    title, program = "the run", PROGRAM
    batch_size: int = option(32, "texts at a time", least=1)

    def load(self) -> tuple[Reader, list[str], Any]:
        """A run's model and tokenizer, its classes, and the context manager of --precision. Errors: `UserError`."""
        folder = find_run(self, "best.safetensors")
        reader = load_reader(folder)
        classes, texts = (reader.model.config.get(name) for name in ("classes", "texts"))
        named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
        if not named or texts not in (1, 2) or len(classes) != reader.model.config["arguments"].get("num_classes"):
            raise UserError(f"{folder / 'config.json'} has no names of 'classes' and number of 'texts' that fit the model")
        model, precision = placed(reader.model, self)
        return reader._replace(model=model), classes, precision


@dataclass
class PredictOptions(UseOptions):
    title = "texts"
    input: str = option("-", "a text a line, of two texts with a tab between them; - is standard input", path=True)
    text: list[str] = option((), "texts, in place of --input", many=True)
    top: int | None = option(None, "scores of so many of the likeliest classes (default: of all)", least=1)
    output: str = option("-", f"text, label and scores of each line: a {TABLES}", path=True)


@dataclass
class EvaluateOptions(UseOptions):
    title = "texts"
    test: list[str] = option((), f"{FILES} (default: the test texts of the run)", many=True, path=True)
    columns: str = option("", f"{COLUMNS} (default: as in training)")
    per_class: bool = option(False, "a line for each class too: recall, precision, F1")
    output: str = option("", f"true and said label of each text, and scores: a {TABLES}", path=True)


@checking_input()
def predict(given: dict[str, Any]) -> None:
    """As many rows out as lines in, in their order."""
    from tasks.text_task import log_probabilities

    options = PredictOptions(**given)
    require_table("--output", options.output)
    if not options.text and options.input != "-" and not Path(options.input).is_file():
        raise UserError(f"--input {options.input} is {'a folder' if Path(options.input).is_dir() else 'not there'}")
    reader, classes, precision = options.load()
    texts, top = iter(lines_of(options)), min(options.top or len(classes), len(classes))
    with precision, writing(options.output) as put:
        number = 0
        while some := list(islice(texts, AHEAD * options.batch_size)):
            split = [parts(line, reader.model.config["texts"], number + n) for n, line in enumerate(some, 1)]
            number += len(some)
            logs = log_probabilities(reader, reader.model, split, options.batch_size)
            put(answers(some, logs.exp(), classes, top))


def lines_of(options: PredictOptions) -> Iterable[str]:
    from tasks.data.text_files import decoded, lines

    if options.text:
        return options.text
    return decoded(sys.stdin.buffer, "standard input") if options.input == "-" else lines(Path(options.input))


def parts(line: str, texts: int, number: int) -> tuple[str, ...]:
    """Errors: `UserError` for a line that is not of two texts, where the model reads two."""
    if texts == 1:
        return (line,)
    first, tab, second = line.partition("\t")
    if not tab:
        raise UserError(f"line {number}: the model reads two texts, with a tab between them, got {line[:60]!r}")
    return first, second


def answers(texts: Sequence[Any], probabilities: Tensor, classes: Sequence[str], top: int) -> Iterator[dict[str, Any]]:
    """A row a text: the likeliest class, and the probabilities of the `top` likeliest by name."""
    for text, values, order in zip(texts, *(found.tolist() for found in probabilities.topk(top)), strict=True):
        scores = {classes[i]: round(p, 6) for i, p in zip(order, values, strict=True)}
        yield {"text": text, "label": next(iter(scores)), "scores": scores}


@checking_input()
def evaluate(given: dict[str, Any]) -> None:
    from tasks.classes import table
    from tasks.text_task import measure, told

    options = EvaluateOptions(**given)
    require_table("--output", options.output)
    reader, classes, precision = options.load()
    test, notes = test_of(options, classes, reader.model.config["texts"])
    with precision, writing(options.output) as put:
        print(*notes, sep="\n", end="\n" if notes else "")
        measured = measure(reader, reader.model, test, classes, options.batch_size)
        print(f"test {told(measured)}")
        if options.per_class:
            print(*table(measured, classes, "texts"), sep="\n")
        said = answers([example.texts for example in test], measured.logs.exp(), classes, len(classes))
        put(beside(example, one, classes) for example, one in zip(test, said, strict=True))


def beside(example: Labelled, said: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """The same columns for each text, as a table needs."""
    texts = dict(zip(("text", "text_pair"), example.texts, strict=False))
    return texts | {"true": example.label, "label": said["label"], "scores": {name: said["scores"][name] for name in classes}}


def test_of(options: EvaluateOptions, classes: Sequence[str], texts: int) -> tuple[list[Labelled], list[str]]:
    """The texts of --test, or those of the run, and what is to be told of them. Errors: `UserError` where they do not fit."""
    from tasks.data.labelled import load, read
    from tasks.text_classification import TrainOptions
    from zoo.files import read_json

    notes: list[str] = []
    folder = find_run(options, "best.safetensors")
    saved = read_json(folder / "options.json")
    run = restored(TrainOptions, saved, folder)
    if options.test:
        test = read(options.test, options.columns or run.columns, notes)
    else:
        data = load(run.data, run.train, run.valid, run.test, run.columns)
        if (data_of(saved) or {}).get("test") != data.identity()["test"]:
            raise UserError(f"{folder}: the test texts are not those of the run any more: give texts by --test")
        test = data.test
    if not test:
        raise UserError("--test: no texts")
    known = {*classes}
    if unknown := sorted({example.label for example in test} - known):
        raise UserError(f"--test: class {unknown[0]!r} is not among those of the model, {', '.join(classes[:10])}")
    if len(test[0].texts) != texts:
        raise UserError(f"--test: the model reads {texts} texts at a time, got {len(test[0].texts)}: --columns chooses them")
    return test, notes
