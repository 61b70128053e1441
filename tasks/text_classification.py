"""Train and use a classifier of texts: ``python -m tasks.text_classification`` learns which module a docstring comes from."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks import commands
from tasks.commands import Command
from tasks.options import EngineOptions, Options, UserError, option
from tasks.text_classification_use import COLUMNS, FILES, PROGRAM, EvaluateOptions, PredictOptions, evaluate, predict
from tasks.text_models import LEVELS, TextModelOptions

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from typing import Any

    from torch import nn

    from tasks.text_task import TextClassification


SMALLEST = "fasttext"
"""Learns in seconds."""


@dataclass
class LabelledOptions(Options):
    title = "data"
    data: str = option(
        "docstrings", "docstrings (of Python's standard library) or hf:NAME[:CONFIG], such as hf:nyu-mll/glue:sst2"
    )
    train: list[str] = option((), f"{FILES}, in place of --data", many=True, path=True)
    valid: list[str] = option((), "the same, to choose the best model by (default: a part of --train)", many=True, path=True)
    test: list[str] = option((), "the same, to measure at the end (default: a part of --train)", many=True, path=True)
    columns: str = option("", COLUMNS)


@dataclass
class TrainOptions(EngineOptions, TextModelOptions, LabelledOptions):
    title, program = "text classification", PROGRAM
    model: str = option("", f"a model of zoo.names() that reads tokens (default: {SMALLEST}, or what --init is)")
    level: str = option(None, f"what a trained tokenizer's tokens are (default: bpe, for {SMALLEST} char)", LEVELS)
    context: int = option(None, f"tokens that the model sees (default: 128, for {SMALLEST} 700)", least=4)
    epochs: int = option(8, "passes over the training texts", least=1)
    batch_tokens: int = option(
        None,
        f"tokens in an optimizer step, padding among them: texts of like length share one (default: 1,024, for {SMALLEST} 8,192)",
        least=4,
    )
    lr: float = option(None, f"peak learning rate (default: 0.001, for {SMALLEST} 0.005, after --init 0.0002)", above=0)
    clip: float = option(1.0, "largest gradient norm; 0 is off", least=0)
    weight_decay: float = option(0.01, "on matrices only", least=0)
    word_dropout: float = option(0.0, "probability with which a token of a training text becomes unknown", least=0, below=1)
    label_smoothing: float = option(0.1, "part of the target that is spread over all classes", least=0, below=1)

    def __post_init__(self) -> None:
        self.model = self.model or ("" if self.init else SMALLEST)
        small = self.model == SMALLEST
        self.level = self.level or ("char" if small else "bpe")
        self.context = (700 if small else 128) if self.context is None else self.context
        self.batch_tokens = (8192 if small else 1024) if self.batch_tokens is None else self.batch_tokens
        self.lr = (0.0002 if self.init else 0.005 if small else 0.001) if self.lr is None else self.lr
        super().__post_init__()
        if self.batch_tokens < self.context:
            raise UserError(f"--batch_tokens must be at least --context, {self.context}, got {self.batch_tokens}")


def train(given: dict[str, Any]) -> None:
    from tasks import runs

    runs.train(TrainOptions, given, default_name, begin)


def default_name(options: TrainOptions) -> str:
    data = Path((options.train or [options.data.removeprefix("hf:")])[0])
    model = options.model or Path(options.init.removeprefix("hf:")).stem
    return f"{model}-{data.stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def begin(options: TrainOptions, folder: Path) -> tuple[TextClassification, nn.Module]:
    """Task and model. Errors: `UserError` and `ValueError` for whatever is wrong with options, data and weights."""
    from tasks import text_models
    from tasks.data.labelled import load
    from tasks.text_task import TextClassification
    from zoo.fasttext import FastText

    text_models.place_of(options, folder)  # refuses before data is read
    data = load(options.data, options.train, options.valid, options.test, options.columns)
    texts = (text for example in data.train for text in example.texts)
    reader = text_models.begin(options, folder, texts, "sequence", classes=data.classes)
    reader.model.config |= {"classes": data.classes, "texts": len(data.train[0].texts)}
    task = TextClassification(data, reader, options)
    if isinstance(reader.model, FastText) and not options.init:
        reader.model.weigh((row.tokens for row in task.rows["train"]), task.labels["train"].tolist())
    return task, reader.model


COMMANDS = {
    "train": Command(
        TrainOptions, "train a classifier of texts, leave a run in RUNS_DIR/NAME", train,
        "--train reviews.csv --columns review,stars --init hf:models/MiniLM --name reviews", "--train {}",
    ),
    "predict": Command(
        PredictOptions, "the likeliest classes of texts, as JSON lines", predict,
        "--name reviews --input new.txt --output said.jsonl", "--text {}",
    ),
    "evaluate": Command(
        EvaluateOptions, "measure a saved model on labelled texts", evaluate,
        "--name reviews --test others.csv --per_class", "--name {}",
    ),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    return commands.main(PROGRAM, COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
