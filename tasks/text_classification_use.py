"""Use a text classifier that `tasks.text_classification` has trained: classify texts, and measure it on others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.commands import checking_input
from tasks.options import UserError, data_of, option, restored
from tasks.saved import SavedOptions, find_run, placed
from tasks.tables import FILES, require_table, writing

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor

    from tasks.text_models import Reader

PROGRAM = "tasks.text_classification"


@dataclass
class UseOptions(SavedOptions):
    program = PROGRAM

    def load(self) -> tuple[Reader, list[str], int, Any, Path]:
        """Model and tokenizer, classes, context, the context manager of --precision, and the run's folder."""
        from tasks.text_models import load_reader

        folder = find_run(self, "best.safetensors")
        reader = load_reader(folder)
        classes, context = (reader.model.config.get(key) for key in ("classes", "context"))
        if not isinstance(classes, list) or not isinstance(context, int):
            raise UserError(f"{folder}: its config.json lacks 'classes' and 'context', which a run of this task leaves there")
        model, precision = placed(reader.model, self)
        return reader._replace(model=model), classes, context, precision, folder


@dataclass
class PredictOptions(UseOptions):
    title = "texts"
    text: list[str] = option((), "texts to classify, in place of --input", many=True)
    text_pair: list[str] = option((), "the second text of each, where the classes are of pairs", many=True)
    input: str = option("-", "file with a text in each line, of pairs with a tab between; - is standard input", path=True)
    top: int = option(3, "how many of the likeliest classes to tell", least=1)
    output: str = option("-", f"the answers: a {FILES}", path=True)


@dataclass
class EvaluateOptions(UseOptions):
    title = "measuring"
    test: list[str] = option((), "files of texts and labels (default: the test texts of the run)", many=True, path=True)
    columns: str = option("", "as for train")
    per_class: bool = option(False, "a line for each class too: recall, precision, F1")
    output: str = option("", f"what was said of each text: a {FILES}", path=True)


@checking_input()
def predict(given: dict[str, Any]) -> None:
    """As many answers as texts, in their order."""
    from tasks.text_models import rows
    from tasks.text_task import said

    options = PredictOptions(**given)
    require_table("--output", options.output)
    if options.text and len(options.text_pair) not in (0, len(options.text)):
        raise UserError(f"--text_pair: expected {len(options.text)} texts, as many as --text, got {len(options.text_pair)}")
    reader, classes, context, precision, folder = options.load()
    texts = [*zip(options.text, options.text_pair, strict=True)] if options.text_pair else [(text,) for text in options.text]
    texts = texts or read_input(options.input, pairs=trained_on_pairs(folder))
    with writing(options.output) as write:
        for start in range(0, len(texts), 1024):
            some = texts[start : start + 1024]
            logs = said(reader, precision, rows(reader.tokenizer, some, context))
            write(answers(some, logs.exp(), classes, options.top))


def trained_on_pairs(folder: Path) -> bool:
    from zoo.files import read_json

    return bool((data_of(read_json(folder / "options.json")) or {}).get("pairs"))


def read_input(path: str, pairs: bool) -> list[tuple[str, ...]]:
    """A text a line, two with a tab between. Errors: `DataError` that names the line."""
    from tasks.data import DataError
    from tasks.translation_use import read_input as read_lines

    found = [tuple(line.split("\t")) if pairs else (line,) for line in read_lines(path)]
    for number, texts in enumerate(found, 1):
        if pairs and len(texts) != 2:
            raise DataError(f"{path}, line {number}: expected two texts with a tab between, got {len(texts)}")
    return found


def answers(texts: Sequence[Sequence[str]], probabilities: Tensor, classes: Sequence[str], top: int) -> Iterator[dict[str, Any]]:
    """A row a text: itself, the likeliest class and its probability, and those of the next ones."""
    values, order = probabilities.topk(min(top, len(classes)))
    for text, best, places in zip(texts, values.tolist(), order.tolist(), strict=True):
        keys = ("text", "text_pair")[: len(text)]
        names = {f"class_{n}" if n > 1 else "class": classes[place] for n, place in enumerate(places, 1)}
        found = {f"probability_{n}" if n > 1 else "probability": value for n, value in enumerate(best, 1)}
        both = {key: value for pair in zip(names.items(), found.items(), strict=True) for key, value in pair}
        yield dict(zip(keys, text, strict=True)) | both


@checking_input()
def evaluate(given: dict[str, Any]) -> None:
    import torch

    from tasks.class_scores import Measured, by_class_lines, text_scores
    from tasks.text_models import rows
    from tasks.text_task import said

    options = EvaluateOptions(**given)
    require_table("--output", options.output)
    reader, classes, context, precision, folder = options.load()
    test = test_of(options, classes, folder)
    labels = torch.tensor([classes.index(example.label) for example in test])
    with writing(options.output) as write:
        texts = [example.texts for example in test]
        measured = Measured(said(reader, precision, rows(reader.tokenizer, texts, context)), labels)
        found = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in text_scores(measured).items())
        print(f"{folder}: test {found} on {len(test):,} texts")
        if options.per_class:
            print(*by_class_lines(measured, classes, "texts"), sep="\n")
        rows_said = answers(texts, measured.logs.exp(), classes, 1)
        write(row | {"true": example.label} for row, example in zip(rows_said, test, strict=True))


def test_of(options: EvaluateOptions, classes: Sequence[str], folder: Path) -> list[Any]:
    """The texts to measure on. Errors: `UserError` for other classes, or if those of a run are no longer what they were."""
    from tasks.data import fingerprint, labelled
    from tasks.text_classification import LabelledDataOptions
    from zoo.files import read_json

    if options.test:
        test = labelled.read(options.test, options.columns, [])
        if not test:
            raise UserError("--test: no texts")
    else:
        saved = read_json(folder / "options.json")
        run = restored(LabelledDataOptions, saved, folder)
        test = labelled.load(run.data, run.train, run.valid, run.test, run.columns).test
        if ((data_of(saved) or {}).get("test") or {}).get("fingerprint") != fingerprint(labelled.bytes_of(test)):
            raise UserError(f"{folder}: the test texts are not those of the run any more: give texts by --test")
    if unknown := sorted({example.label for example in test} - {*classes}):
        known = ", ".join(classes[:10])
        raise UserError(f"the class {unknown[0]!r} of a test text is not among those that the model knows, {known}")
    return test
