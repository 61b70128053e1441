"""Train and use a text classifier: ``python -m tasks.text_classification`` learns which module a docstring comes from."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import commands
from tasks.commands import Command
from tasks.options import EngineOptions, Options, option
from tasks.text_classification_use import PROGRAM, EvaluateOptions, PredictOptions, evaluate, predict
from tasks.text_models import TextModelOptions

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import nn

    from tasks.text_task import TextClassification


@dataclass
class LabelledDataOptions(Options):
    title = "data"
    data: str = option(
        "docstrings", "docstrings (of which module of the standard library?), or hf:NAME, such as hf:nyu-mll/glue:sst2"
    )
    train: list[str] = option((), "files of texts and labels, .csv, .tsv or .jsonl, in place of --data", many=True, path=True)
    valid: list[str] = option((), "the same, to choose the best model by (default: a tenth of --train)", many=True, path=True)
    test: list[str] = option((), "the same, to measure at the end (default: a tenth of --train)", many=True, path=True)
    columns: str = option("", "columns of a text, or two, and the label: by number, 1,3, or by name, question1,question2,label")


@dataclass
class TrainOptions(EngineOptions, TextModelOptions, LabelledDataOptions):
    title, program = "text classification", PROGRAM
    epochs: int = option(12, "passes over the training data", least=1)
    max_tokens: int = option(2048, "tokens in one optimizer step, padding among them; texts of like length share one", least=4)
    weight_decay: float = option(0.05, "on matrices only", least=0)
    clip: float = option(1.0, "largest gradient norm; 0 is off", least=0)
    label_smoothing: float = option(0.1, "part of the target that is spread over all classes", least=0, below=1)
    token_dropout: float = option(0.1, "part of the tokens that are unknown ones while training", least=0, below=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.max_tokens = max(self.max_tokens, self.context)


def train(given: dict[str, Any]) -> None:
    from tasks import runs

    def named(options: TrainOptions) -> str:
        data = Path((options.train or [options.data.removeprefix("hf:")])[0]).stem
        return f"{options.model or 'classifier'}-{data}-{time.strftime('%Y%m%d-%H%M%S')}"

    runs.train(TrainOptions, given, named, begin)


def begin(options: TrainOptions, folder: Path) -> tuple[TextClassification, nn.Module]:
    """Task and model. Errors: `UserError` and `ValueError` for whatever is wrong with options, data and weights."""
    from tasks import text_models
    from tasks.classes import match_classes
    from tasks.data.labelled import load
    from tasks.text_task import TextClassification

    data = load(options.data, options.train, options.valid, options.test, options.columns)
    texts = (text for example in data.train for text in example.texts)
    reader = text_models.begin(options, folder, texts, "sequence", num_classes=len(data.classes))
    known = reader.model.config.get("classes")
    told = match_classes(reader.model, known, data.classes) if options.init else []
    reader.model.config |= {"classes": data.classes}
    task = TextClassification(data, reader, options)
    task.told = [*task.told, *told]
    return task, reader.model


COMMANDS = {
    "train": Command(
        TrainOptions,
        "train a classifier, leave a run in RUNS_DIR/NAME",
        train,
        "--train reviews.csv --name reviews",
        "--train {}",
    ),
    "predict": Command(
        PredictOptions, "the likeliest classes of each text", predict, '--name reviews --text "never again"', '--text "{}"'
    ),
    "evaluate": Command(
        EvaluateOptions, "measure a saved classifier", evaluate, "--name reviews --per_class --output said.csv", "--name {}"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    return commands.main(PROGRAM, COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
