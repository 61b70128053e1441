"""What text classification is to the engine: batches of like length, loss, metrics, and the report on the best model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from tasks import plots, report
from tasks.classes import Measured, agreement, hits, scores, table
from tasks.data import seed_of
from tasks.data.batching import batches, padded
from tasks.data.labelled import Labelled, LabelledTexts
from tasks.saved import placed
from tasks.task import Metric, Split, Task
from tasks.text_baselines import baselines
from tasks.text_models import Reader, called, rows, told_of

if TYPE_CHECKING:
    from tasks.engine import Run
    from tasks.text_classification import TrainOptions

EXAMPLES = 5
"""Texts of the test set to print."""


class TextClassification(Task):
    """Cross entropy, accuracy, macro F1 and Matthews' correlation; a text counts as one, whatever its length."""

    unit = "texts"
    primary = Metric("accuracy")

    def __init__(self, data: LabelledTexts, reader: Reader, options: TrainOptions) -> None:
        self.data, self.reader, self.options = data, reader, options
        tokenizer, number = reader.tokenizer, {name: n for n, name in enumerate(data.classes)}
        self.labels = {name: torch.tensor([number[e.label] for e in split]) for name, split in data.splits()}
        self.rows = {name: rows(tokenizer, [e.texts for e in split], options.context) for name, split in data.splits()}
        lengths = {name: torch.tensor([len(row.tokens) for row in found]) for name, found in self.rows.items()}
        fixed = batches(lengths["valid"], max(options.batch_tokens, 4096), 0, 0)
        self.train = Split(
            len(data.train),
            lambda epoch: batches(lengths["train"], options.batch_tokens, options.seed, epoch),
            lambda indices, epoch: self.batch("train", indices, epoch),
        )
        self.valid = Split(len(data.valid), lambda epoch: fixed, lambda indices, epoch: self.batch("valid", indices))
        self.identity = {"tokenizer": tokenizer.fingerprint, **data.identity()}
        self.told = [
            *data.told(),
            *reader.told,
            *told_of([row for found in self.rows.values() for row in found], options.context),
        ]

    def batch(self, split: str, indices: Tensor, epoch: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and their types (b, n), padded on the right, and labels (b,). epoch: of training, where words are dropped."""
        found = [self.rows[split][n] for n in indices.tolist()]
        tokens = padded([row.tokens for row in found], self.reader.tokenizer.pad)
        if epoch is not None and self.options.word_dropout:
            tokens = self.with_unknown(tokens, indices, epoch)
        return tokens, padded([row.types for row in found], 0), self.labels[split][indices]

    def with_unknown(self, tokens: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """Each row draws by itself, so that it does not matter which others share its batch."""
        special = torch.tensor([*self.reader.tokenizer.special.values()])
        generator, drawn = torch.Generator(), torch.empty(tokens.shape)
        for row, n in enumerate(indices.tolist()):
            drawn[row].uniform_(generator=generator.manual_seed(seed_of("words", self.options.seed, epoch, n)))
        dropped = (drawn < self.options.word_dropout) & ~torch.isin(tokens, special)
        return tokens.masked_fill(dropped, self.reader.tokenizer.unk)

    def units(self, batch: Any) -> int:
        return len(batch[2])

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, types, labels = batch
        logits = called(self.reader, model, tokens, types).float()
        smoothing = self.options.label_smoothing if model.training else 0.0
        loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
        return loss, {name: value for name, value in hits(logits.detach(), labels).items() if name == "accuracy"}

    def score(self, model: nn.Module) -> dict[str, float]:
        return agreement(measure(self.reader, model, self.data.valid, self.data.classes))

    def keep(self, folder: Path) -> None:
        self.reader.tokenizer.save(folder / "tokenizer.json")

    def report(self, run: Run, summary: dict[str, Any]) -> dict[str, Any]:
        """Measure the best model on the test texts, beside what needs no network; the surest mistakes, figures."""
        folder, data = run.folder, self.data
        options: Any = self.options
        model, precision = placed(zoo.load(folder / "best.safetensors"), options)
        with precision:
            measured = measure(self.reader, model, data.test, data.classes)
        probabilities, labels = measured.logs.exp(), measured.labels
        sure, said = probabilities.max(-1)
        notes = plots.curves(run.history, folder / "curves.png", self.primary)
        about = f"best.safetensors of {folder}, epoch {summary['best_epoch']}, on {len(labels):,} test texts"
        notes += plots.confusion(labels, said, data.classes, folder / "confusion.png", about)
        print(*notes, sep="\n", end="\n" if notes else "")
        examples = [
            {"text": " | ".join(e.texts), "said": data.classes[n], "probability": round(p, 4), "true": e.label}
            for e, n, p in zip(data.test, said.tolist(), sure.tolist(), strict=True)
        ]
        wrong = [example for example in examples if example["said"] != example["true"]]
        report.write_examples(folder, sorted(wrong, key=lambda example: -example["probability"])[:50])
        for example in examples[:: max(1, len(examples) // EXAMPLES)][:EXAMPLES]:
            text = " ".join(example["text"].split())
            print(
                f"  {text[:80]}{'...' * (len(text) > 80)}  ->  {example['said']} {example['probability']:.1%} ({example['true']})"
            )
        print(*table(measured, data.classes, "texts"), sep="\n")
        print(f"test {told(measured)}")
        others = baselines(data.train, data.test)
        print(*(f"{name}: accuracy {accuracy:.4f}" for name, accuracy in others.items()), sep="\n")
        print(f"{summary['seconds']:.1f} s of training; see {folder}")
        tested = scores(measured) | agreement(measured)
        return {f"test_{name}": value for name, value in tested.items()} | {"baselines": others}


def log_probabilities(reader: Reader, model: nn.Module, texts: Sequence[Sequence[str]], batch_size: int = 32) -> Tensor:
    """(n, classes), on the CPU: texts of like length share a batch."""
    found = rows(reader.tokenizer, texts, reader.model.config["context"])
    device = next(model.parameters()).device
    order = sorted(range(len(found)), key=lambda n: len(found[n].tokens))
    logs = []
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        tokens = padded([found[n].tokens for n in part], reader.tokenizer.pad).to(device)
        types = padded([found[n].types for n in part], 0).to(device)
        with torch.inference_mode():
            logs.append(called(reader, model, tokens, types).float().log_softmax(-1).cpu())
    return torch.cat(logs)[torch.tensor(order).argsort()]


def measure(
    reader: Reader, model: nn.Module, examples: Sequence[Labelled], classes: Sequence[str], batch_size: int = 32
) -> Measured:
    number = {name: n for n, name in enumerate(classes)}
    logs = log_probabilities(reader, model.eval(), [e.texts for e in examples], batch_size)
    return Measured(logs, torch.tensor([number[e.label] for e in examples]))


def told(measured: Measured) -> str:
    found = scores(measured) | agreement(measured)
    count = len(measured.labels)
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in found.items()) + f" on {count:,} texts"
