"""What text classification is to the engine: batches of like length, loss, metrics, and the report on the best model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from tasks import plots, report
from tasks.class_scores import Measured, text_scores
from tasks.data import generator_of
from tasks.data.batching import batches, padded
from tasks.data.labelled import LabelledTexts
from tasks.saved import placed
from tasks.task import Metric, Split, Task
from tasks.text_baselines import baselines
from tasks.text_models import Reader, Row, called, rows, told_of

if TYPE_CHECKING:
    from tasks.engine import Run
    from tasks.text_classification import TrainOptions


class TextClassification(Task):
    """Cross entropy and accuracy, a text counts once, however long it is."""

    unit = "texts"
    primary = Metric("accuracy")

    def __init__(self, data: LabelledTexts, reader: Reader, options: TrainOptions) -> None:
        self.data, self.reader, self.options = data, reader, options
        number = {name: n for n, name in enumerate(data.classes)}
        self.rows = {
            name: rows(reader.tokenizer, [example.texts for example in split], options.context) for name, split in data.splits()
        }
        self.labels = {name: torch.tensor([number[example.label] for example in split]) for name, split in data.splits()}
        lengths = {name: torch.tensor([len(row.tokens) for row in found]) for name, found in self.rows.items()}
        most, seed = options.max_tokens, options.seed
        self.train = Split(len(data.train), lambda epoch: batches(lengths["train"], most, seed, epoch), self.training_batch)
        in_order = lengths["valid"].argsort(stable=True).split(max(1, most // options.context))
        self.valid = Split(len(data.valid), lambda epoch: in_order, lambda indices, epoch: self.batch("valid", indices))
        self.identity = {"tokenizer": reader.tokenizer.fingerprint, **data.identity()}
        self.told = [*data.told(), *told_of(self.rows["train"], options.context)]

    def batch(self, split: str, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and types (b, n), padded on the right, and labels (b,)."""
        tokens, types = tensors([self.rows[split][i] for i in indices.tolist()], self.reader)
        return tokens, types, self.labels[split][indices]

    def training_batch(self, indices: Tensor, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        tokens, types, labels = self.batch("train", indices)
        if share := self.options.token_dropout:
            for n, row in enumerate(indices.tolist()):
                draws = torch.rand(tokens.shape[1], generator=generator_of("tokens", self.options.seed, epoch, row))
                tokens[n] = hidden(tokens[n], draws < share, self.reader.tokenizer)
        return tokens, types, labels

    def units(self, batch: Any) -> int:
        return len(batch[2])

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, types, labels = batch
        logits = called(self.reader, model, tokens, types).float()
        smoothing = self.options.label_smoothing if model.training else 0.0
        loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
        found = {"accuracy": (logits.argmax(-1) == labels).sum()}
        if smoothing:
            found["plain_loss"] = F.cross_entropy(logits.detach(), labels, reduction="sum")
        return loss, found

    def keep(self, folder: Any) -> None:
        self.reader.tokenizer.save(folder / "tokenizer.json")

    def report(self, run: Run, summary: dict[str, Any]) -> dict[str, Any]:
        folder, classes, test = run.folder, self.data.classes, self.data.test
        options: Any = run.options
        model, context = placed(zoo.load(folder / "best.safetensors"), options)
        measured = Measured(said(self.reader._replace(model=model), context, self.rows["test"]), self.labels["test"])
        found = {f"test_{name}": value for name, value in text_scores(measured).items()}
        answers = measured.logs.argmax(-1)
        which = f"best.safetensors of {folder}, epoch {summary['best_epoch']}, on {len(test):,} test texts"
        notes = plots.curves(run.history, folder / "curves.png", self.primary)
        notes += plots.confusion(measured.labels, answers, classes, folder / "confusion.png", which)
        print(*dict.fromkeys(notes), sep="\n", end="\n" if notes else "")
        names = [classes[n] for n in answers.tolist()]
        shown = [
            {"text": "\n".join(e.texts)[:300], "said": name, "true": e.label} for e, name in zip(test[:200], names, strict=False)
        ]
        wrong = [row for row in shown if row["said"] != row["true"]]
        report.write_examples(folder, wrong[:20])
        for row in [*shown[:3], *wrong[:2]]:
            right = "right" if row["said"] == row["true"] else f"wrong: {row['true']}"
            print(f"  {' '.join(row['text'].split())[:90]!r}: {row['said']}, {right}")
        others = baselines(self.data.train, test)
        told = ", ".join(f"{name} {accuracy:.4f}" for name, accuracy in others.items())
        more = ", ".join(f"{name} {found[f'test_{name}']:.4f}" for name in ("macro_f1", "matthews"))
        print(
            f"test accuracy {found['test_accuracy']:.4f} ({told}), {more}; {summary['seconds']:.1f} s of training; see {folder}"
        )
        return found | {"baselines": others}


def tensors(found: Sequence[Row], reader: Reader) -> tuple[Tensor, Tensor]:
    """Tokens and types (b, n), padded on the right."""
    return padded([row.tokens for row in found], reader.tokenizer.pad), padded([row.types for row in found], 0)


def hidden(tokens: Tensor, chosen: Tensor, tokenizer: Any) -> Tensor:
    """tokens (n,), the chosen ones unknown, but for special ones."""
    special = torch.tensor([tokenizer.pad, tokenizer.cls, tokenizer.sep])
    return tokens.masked_fill(chosen & ~torch.isin(tokens, special), tokenizer.special.get("mask", tokenizer.unk))


def said(reader: Reader, context: AbstractContextManager[Any], found: Sequence[Row], batch_size: int = 64) -> Tensor:
    """Logarithms of probabilities (n, classes), float32, on the CPU, in the order of the rows; like lengths together."""
    order = sorted(range(len(found)), key=lambda n: len(found[n].tokens))
    device, logs = next(reader.model.parameters()).device, []
    for start in range(0, len(order), batch_size):
        tokens, types = tensors([found[n] for n in order[start : start + batch_size]], reader)
        with torch.inference_mode(), context:
            logs.append(called(reader, reader.model, tokens.to(device), types.to(device)).float().log_softmax(-1).cpu())
    return torch.cat(logs)[torch.tensor(order).argsort()]
