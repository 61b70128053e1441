"""Answer questions by parts of a text: ``python -m tasks.question_answering`` learns to read the signatures of functions."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import commands
from tasks.commands import Command
from tasks.options import OPTIMIZERS, Options, UserError, option
from tasks.question_answering_use import PROGRAM, SQUAD, AnswerOptions, EvaluateOptions, PredictOptions, evaluate, predict
from tasks.saved import placed
from tasks.span_models import WindowOptions, real, split
from tasks.task import Metric, Task

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor, nn

    from tasks.data.answer_windows import Window
    from tasks.data.questions import Question
    from tasks.engine import Run
    from tasks.text_models import Reader

DEFAULT = "roformer_small"
"""What is to be found stands beside what was asked for: rotary positions see that at once, tables of positions learn it late."""
Splits = Mapping[str, "list[Question]"]


@dataclass
class QuestionOptions(Options):
    title = "data"
    data: str = option("signatures", "signatures, questions about functions of Python's standard library")
    train: list[str] = option((), f"{SQUAD}, in place of --data", many=True, path=True)
    valid: list[str] = option((), "the same, to choose model and threshold by (default: a part of --train)", many=True, path=True)
    test: list[str] = option((), "the same, to measure at the end (default: a part of --train)", many=True, path=True)


@dataclass
class TrainOptions(AnswerOptions, WindowOptions, QuestionOptions):
    title, program = "question answering", PROGRAM
    context: int = option(64, "tokens of a window", least=8)
    vocab_size: int = option(4000, "tokens of a trained tokenizer, at most", least=5, most=10_000_000)
    model: str = option("", f"a model of zoo.names() that reads tokens (default: {DEFAULT}, or what --init is)")
    dropout: float | None = option(None, "in the model (default: 0, after --init the model's own)", least=0, below=1)
    optimizer: str = option(None, "(default: muon, after --init adamw)", OPTIMIZERS)
    lr: float = option(None, "peak learning rate (default: 0.004 for muon, else 0.002, after --init 0.00005)", above=0)
    epochs: int = option(4, "passes over the training questions", least=1)
    examples: int = option(8, "questions of the test set to print", least=0)

    def __post_init__(self) -> None:
        if not self.init:
            self.model, self.dropout = self.model or DEFAULT, 0.0 if self.dropout is None else self.dropout
        self.optimizer = self.optimizer or ("adamw" if self.init else "muon")
        self.lr = (0.00005 if self.init else 0.004 if self.optimizer == "muon" else 0.002) if self.lr is None else self.lr
        super().__post_init__()


class QuestionAnswering(Task):
    """Cross entropy of where an answer begins and of where it ends, over the context and `cls`; exact match and F1."""

    unit = "windows"
    primary = Metric("exact")

    def __init__(self, splits: Splits, reader: Reader, options: TrainOptions, notes: list[str]) -> None:
        from tasks.data.answer_windows import cut

        self.splits, self.reader, self.options = splits, reader, options
        rows = {name: cut(reader.tokenizer, splits[name], options.context, options.overlap) for name in ("train", "valid")}
        flat = {name: [window for windows in part for window in windows] for name, part in rows.items()}
        self.train, self.valid = (split(flat[name], self.collate, options, name == "train") for name in ("train", "valid"))
        self.identity = {"tokenizer": reader.tokenizer.fingerprint, **identity(splits)}
        pairs = list(zip(splits["train"], rows["train"], strict=True))
        lost = sum(bool(x.answers) and all(window.answer == (0, 0) for window in windows) for x, windows in pairs)
        self.told = [
            *(f"{name}: {len(x):,} questions, {sum(not q.answers for q in x):,} without an answer" for name, x in splits.items()),
            *notes,
            *reader.told,
            f"{reader.tokenizer.vocab_size:,} tokens; {len(flat['train']):,} windows to train on"
            + (f"; {lost:,} answers are in none as a whole" if lost else ""),
        ]

    def collate(self, rows: Sequence[Window]) -> tuple[Tensor, ...]:
        """Tokens, mask, types and where an answer may be (b, n), then where it begins and ends (b,)."""
        import torch

        from tasks.data.batching import padded

        ids = [row.ids for row in rows]
        places = [[1] + [0] * (row.start - 1) + [1] * len(row.places) for row in rows]
        allowed = padded([p + [0] * (len(row.ids) - len(p)) for p, row in zip(places, rows, strict=True)], 0).bool()
        answers = torch.tensor([row.answer for row in rows], dtype=torch.long).reshape(-1, 2)
        tokens, types = padded(ids, self.reader.tokenizer.pad), padded([row.types for row in rows], 0)
        return tokens, real(ids), types, allowed, answers[:, 0], answers[:, 1]

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        from torch.nn import functional as F

        tokens, mask, types, allowed, *ends = batch
        inputs = (tokens, mask, types) if self.reader.typed else (tokens, mask)
        logits = [x.float().masked_fill(~allowed, -1e4) for x in model(*inputs)]
        losses = [F.cross_entropy(x, end, reduction="sum") for x, end in zip(logits, ends, strict=True)]
        right = [x.argmax(-1) == end for x, end in zip(logits, ends, strict=True)]
        return (losses[0] + losses[1]) / 2, {"accuracy": (right[0] & right[1]).sum().detach()}

    def score(self, model: Any) -> dict[str, float]:
        """With the threshold that is best here, which the model keeps."""
        from tasks.answering import answer, measured, threshold_for

        questions = self.splits["valid"]
        found = answer(self.reader._replace(model=model), questions, n_best=1, max_answer=self.options.max_answer)
        model.config |= {"threshold": threshold_for(questions, found)}
        scores = measured(questions, found, model.config["threshold"])
        return {name: scores[name] for name in ("exact", "f1")}

    def keep(self, folder: Path) -> None:
        self.reader.tokenizer.save(folder / "tokenizer.json")

    def report(self, run: Run, summary: dict[str, Any]) -> dict[str, Any]:
        """Measure the best model on the test questions, beside what needs no model; examples, curves."""
        import zoo
        from tasks import plots, report
        from tasks.answer_scores import scores
        from tasks.answer_scores import summary as told
        from tasks.answering import answer, measured, row

        options, questions = self.options, self.splits["test"]
        model, precision = placed(zoo.load(run.folder / "best.safetensors"), options)  # type: ignore
        threshold: float = model.config["threshold"]  # type: ignore
        with precision:
            reader = self.reader._replace(model=model)
            found = answer(reader, questions, n_best=options.n_best, max_answer=options.max_answer)
        for note in plots.curves(run.history, run.folder / "curves.png", self.primary):
            print(note)
        some = range(0, len(questions), max(1, len(questions) // max(options.examples, 1)))[: options.examples]
        rows = [(questions[n], row(questions[n], found[n], threshold)) for n in some]
        right = [
            {"question": x.question, "answer": y["answer"], "expected": " | ".join(x.texts), "context": x.context}
            for x, y in rows
        ]
        report.write_examples(run.folder, right)
        print(*(f"  {x['question']}?  {x['answer'] or '(none)'}  [{x['context'][:90]}]" for x in right), sep="\n")
        result = measured(questions, found, threshold)
        others: dict[str, float] = {}
        if not options.train:
            from tasks.data.signatures import baselines

            for name, said in baselines(self.splits["train"], questions).items():
                others[name] = scores(said, [x.texts for x in questions])["exact"]
        print(f"test {told(result)} on {len(questions):,} questions, threshold {threshold:.4g}")
        print(
            "exact without a model: " + ", ".join(f"{name} {value:.4f}" for name, value in others.items()) if others else "",
            end="",
        )
        print(f"\n{summary['seconds']:.1f} s of training; see {run.folder}")
        return {f"test_{name}": value for name, value in result.items()} | {"threshold": threshold, "baselines": others}


def load(options: QuestionOptions) -> tuple[dict[str, list[Question]], list[str]]:
    """The questions of each split, and what is to be told of them. Errors: `DataError`."""
    from tasks.data import questions
    from tasks.data.signatures import signatures
    from tasks.data.splitting import held_out

    if not options.train:
        if options.data != "signatures":
            raise UserError(f"--data must be signatures, got {options.data!r}: files are given by --train")
        if options.valid or options.test:
            raise UserError(f"--{'valid' if options.valid else 'test'} is for questions of your own: give --train too")
        return signatures(), []
    notes: list[str] = []
    names = [name for name in ("train", "valid", "test") if getattr(options, name)]
    splits, more = held_out({name: questions.read(getattr(options, name), notes) for name in names}, lambda x: x.context)
    return splits, notes + more


def identity(splits: Splits) -> dict[str, Any]:
    """What a run keeps of its data, to know it again."""
    from tasks.data import fingerprint
    from tasks.data.questions import bytes_of

    return {name: {"questions": len(part), "fingerprint": fingerprint(bytes_of(part))} for name, part in splits.items()}


def train(given: dict[str, Any]) -> None:
    from tasks import runs

    runs.train(TrainOptions, given, default_name, begin)


def default_name(options: TrainOptions) -> str:
    data = Path((options.train or [options.data])[0])
    return f"{options.model or 'reader'}-{data.stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def begin(options: TrainOptions, folder: Path) -> tuple[QuestionAnswering, nn.Module]:
    """Task and model. Errors: `UserError` and `ValueError` for whatever is wrong with options and data."""
    from tasks import text_models
    from zoo.files import read_json

    text_models.place_of(options, folder)  # refuses before data is read
    splits, notes = load(options)
    texts = {text: None for x in splits["train"] for text in (x.context, x.question)}
    reader = text_models.begin(options, folder, texts, "answer", apart=True)
    kept = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}  # of the best epoch so far
    reader.model.config |= {"overlap": options.overlap, "threshold": kept.get("threshold", 0.0)}
    return QuestionAnswering(splits, reader, options, notes), reader.model


COMMANDS = {
    "train": Command(
        TrainOptions, "train a model that answers questions, leave a run in RUNS_DIR/NAME", train,
        "--train train-v2.0.json --test dev-v2.0.json --name squad", "--train {}",
    ),
    "predict": Command(
        PredictOptions, "answer questions, as JSON lines", predict,
        '--name squad --question "Who reads?" --context "Ada reads."', "--question {}",
    ),
    "evaluate": Command(
        EvaluateOptions, "measure a saved model by exact match and F1", evaluate,
        "--name squad --output answers.jsonl", "--name {}",
    ),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    return commands.main(PROGRAM, COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
