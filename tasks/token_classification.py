"""Find and label parts of texts: ``python -m tasks.token_classification`` learns what the parts of dates are, in 62 languages."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import commands
from tasks.commands import Command
from tasks.options import Options, UserError, option
from tasks.saved import placed
from tasks.span_models import WindowOptions, real, split
from tasks.task import Metric, Task
from tasks.token_classification_use import (
    PROGRAM,
    TAGGED,
    EvaluateOptions,
    PredictOptions,
    evaluate,
    measured,
    predict,
    row,
    told,
)  # fmt: skip

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor, nn

    from tasks.data.alignment import Window
    from tasks.data.tagged import Tagged
    from tasks.engine import Run
    from tasks.text_models import Reader

Splits = Mapping[str, "list[Tagged]"]


@dataclass
class TaggedOptions(Options):
    title = "data"
    data: str = option("dates", "dates, parts of dates and times in many languages")
    train: list[str] = option((), f"{TAGGED}, in place of --data", many=True, path=True)
    valid: list[str] = option((), "the same, to choose the best model by (default: a part of --train)", many=True, path=True)
    test: list[str] = option((), "the same, to measure at the end (default: a part of --train)", many=True, path=True)
    scheme: str = option("auto", "of tags; auto is the one that all tags of a file fit", ("auto", "iob2", "iob1", "iobes", "io"))


@dataclass
class TrainOptions(WindowOptions, TaggedOptions):
    title, program = "token classification", PROGRAM
    epochs: int = option(4, "passes over the training texts", least=1)
    examples: int = option(8, "texts of the test set to print", least=0)


class TokenClassification(Task):
    """Cross entropy of the tag of each word, at its first token; F1 of spans."""

    unit = "windows"
    primary = Metric("f1")

    def __init__(self, splits: Splits, reader: Reader, options: TrainOptions, notes: list[str]) -> None:
        from tasks.data.alignment import cut, encode
        from tasks.data.windows import IGNORED

        tokenizer, tags = reader.tokenizer, reader.model.config["tags"]
        self.splits, self.reader, self.options, self.ignored = splits, reader, options, IGNORED
        place = {tag: n for n, tag in enumerate(tags)}
        lost = words = 0
        rows: dict[str, list[Labels]] = {"train": [], "valid": []}
        for name, found in rows.items():
            texts = splits[name]
            encoded = encode(tokenizer, [x.text for x in texts], [x.words for x in texts])
            for text, one in zip(texts, encoded, strict=True):
                # a type that training lacks is never said, and what is outside cannot be learned of it
                known = [place.get(tag, IGNORED) for tag in text.tags]
                found += [Labels(window, known) for window in cut(one, tokenizer, options.context, options.overlap)]
                lost, words = lost + one.firsts.count(-1), words + len(one.firsts)
        self.train, self.valid = (split(rows[name], self.collate, options, name == "train") for name in ("train", "valid"))
        self.identity = {"tokenizer": tokenizer.fingerprint, "tags": tags, **identity(splits)}
        longer = len(rows["train"]) - len(splits["train"])
        self.told = [
            *(f"{name}: {len(x):,} texts, {sum(len(t.spans) for t in x):,} spans" for name, x in splits.items()),
            *notes,
            *reader.told,
            f"{(len(tags) - 1) // 2} types of spans, {tokenizer.vocab_size:,} tokens"
            + (f"; {longer:,} more windows for texts longer than {options.context} tokens" if longer else "")
            + (f"; {lost:,} of {words:,} words have no token of their own" if lost else ""),
        ]

    def collate(self, rows: Sequence[Labels]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and mask (b, n), and labels (b, n), `IGNORED` but at the first token of a word."""
        from tasks.data.batching import padded

        ids = [row.ids for row in rows]
        return padded(ids, self.reader.tokenizer.pad), real(ids), padded([row.labels for row in rows], self.ignored)

    def units(self, batch: Any) -> int:
        return max(int((batch[2] != self.ignored).sum()), 1)

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        from torch.nn import functional as F

        tokens, mask, labels = batch
        logits, labels = model(tokens, mask).float().flatten(0, 1), labels.flatten()
        loss = F.cross_entropy(logits, labels, reduction="sum", ignore_index=self.ignored)
        return loss, {"accuracy": (logits.argmax(-1) == labels).sum().detach()}

    def score(self, model: Any) -> dict[str, float]:
        from tasks.span_scores import total
        from tasks.token_labelling import label

        texts = self.splits["valid"]
        found = label(self.reader._replace(model=model), texts)
        by_type, exact = measured(texts, [one.spans for one in found])
        return {"f1": total(by_type).f1, "whole_texts": exact}

    def keep(self, folder: Path) -> None:
        self.reader.tokenizer.save(folder / "tokenizer.json")

    def report(self, run: Run, summary: dict[str, Any]) -> dict[str, Any]:
        """Measure the best model on the test texts, beside each word's commonest label; examples, curves."""
        import zoo
        from tasks import plots, report
        from tasks.span_scores import macro_f1, table, total
        from tasks.token_labelling import commonest, label

        options, texts = self.options, self.splits["test"]
        model, precision = placed(zoo.load(run.folder / "best.safetensors"), options)  # type: ignore
        with precision:
            found = label(self.reader._replace(model=model), texts)
        for note in plots.curves(run.history, run.folder / "curves.png", self.primary):
            print(note)
        some = range(0, len(texts), max(1, len(texts) // max(options.examples, 1)))[: options.examples]
        rows = [row(texts[n], found[n]) for n in some]
        examples = [{"text": x["text"], "spans": "; ".join(f"{s['label']} {s['text']}" for s in x["spans"])} for x in rows]
        report.write_examples(run.folder, examples)
        print(*(f"  {x['text']}  ->  {x['spans']}" for x in examples), sep="\n")
        by_type, exact = measured(texts, [one.spans for one in found])
        plain, plain_exact = measured(texts, commonest(self.splits["train"], texts))
        print(*table(by_type), sep="\n")
        print(f"test {told(by_type, exact, len(texts))}")
        print(f"each word's commonest label: span F1 {total(plain).f1:.4f}, whole texts {plain_exact:.4f}")
        print(f"{summary['seconds']:.1f} s of training; see {run.folder}")
        return {
            "test_f1": total(by_type).f1, "test_macro_f1": macro_f1(by_type), "test_whole_texts": exact,
            "commonest_label_f1": total(plain).f1,
        }  # fmt: skip


class Labels:
    """A window and the label of each of its tokens."""

    def __init__(self, window: Window, known: Sequence[int]) -> None:
        self.ids, self.labels = window.ids, window.labels(known)


def load(options: TaggedOptions) -> tuple[dict[str, list[Tagged]], list[str]]:
    """The texts of each split, and what is to be told of them. Errors: `DataError`."""
    from tasks.data.date_parts import date_parts
    from tasks.data.splitting import held_out
    from tasks.data.tagged import read

    if not options.train:
        if options.data != "dates":
            raise UserError(f"--data must be dates, got {options.data!r}: files are given by --train")
        if options.valid or options.test:
            raise UserError(f"--{'valid' if options.valid else 'test'} is for texts of your own: give --train too")
        return date_parts(), []
    splits = {name: read(getattr(options, name), options.scheme) for name in ("train", "valid", "test") if getattr(options, name)}
    return held_out(splits, lambda text: text.text)


def identity(splits: Splits) -> dict[str, Any]:
    """What a run keeps of its data, to know it again."""
    from tasks.data import fingerprint

    return {
        name: {"texts": len(texts), "fingerprint": fingerprint(f"{x.text}\0{x.tags}".encode() for x in texts)}
        for name, texts in splits.items()
    }


def train(given: dict[str, Any]) -> None:
    from tasks import runs

    runs.train(TrainOptions, given, default_name, begin)


def default_name(options: TrainOptions) -> str:
    data = Path((options.train or [options.data])[0])
    return f"{options.model or 'reader'}-{data.stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def begin(options: TrainOptions, folder: Path) -> tuple[TokenClassification, nn.Module]:
    """Task and model. Errors: `UserError` and `ValueError` for whatever is wrong with options and data."""
    from tasks import text_models
    from tasks.data.spans import tag_set

    text_models.place_of(options, folder)  # refuses before data is read
    splits, notes = load(options)
    types = sorted({span.type for text in splits["train"] for span in text.spans})
    if not types:
        raise UserError("the training texts have no spans: all of their words are outside")
    tags = tag_set(types)
    texts = (text.text for text in splits["train"])
    reader = text_models.begin(options, folder, texts, "tokens", apart=True, num_classes=len(tags))
    reader.model.config |= {"tags": tags, "overlap": options.overlap}
    unknown = {span.type for name in ("valid", "test") for text in splits[name] for span in text.spans} - {*types}
    notes += [f"types that only valid or test have, and no model can say: {', '.join(sorted(unknown))}"] if unknown else []
    return TokenClassification(splits, reader, options, notes), reader.model


COMMANDS = {
    "train": Command(
        TrainOptions, "train a model that finds spans, leave a run in RUNS_DIR/NAME", train,
        "--train labeled.xml --name addresses", "--train {}",
    ),
    "predict": Command(
        PredictOptions, "find spans in texts, as JSON lines", predict, '--name addresses --text "12 Main St"', "--text {}"
    ),
    "evaluate": Command(
        EvaluateOptions, "measure a saved model by span F1", evaluate, "--name addresses --output spans.jsonl", "--name {}"
    ),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    return commands.main(PROGRAM, COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
