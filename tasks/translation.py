"""Train and use a translator: ``python -m tasks.translation`` learns to write dates, times and amounts in another language."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import commands
from tasks.commands import Command, checking_input
from tasks.options import EngineOptions, UserError, option
from tasks.scores import scores
from tasks.task import Metric, Split, Task
from tasks.translation_use import (
    CorpusOptions,
    DataOptions,
    EvaluateOptions,
    TranslateOptions,
    evaluate,
    translate,
    translate_lines,
)  # fmt: skip

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor, nn

    from tasks.data.parallel import Held, ParallelData
    from tasks.engine import Run


@dataclass
class TrainOptions(EngineOptions, CorpusOptions):
    model: str = option("transformer_small", "a name that zoo.names() knows")
    epochs: int = option(None, "passes over the training data (default: 5, for cmudict 8)", least=1)
    lr: float = option(0.004, "peak learning rate; the large models want less, about 0.0005", above=0)
    warmup: float = option(0.2, "epochs in which the learning rate rises from zero", least=0)
    clip: float = option(1.0, "largest gradient norm; 0 is off", least=0)
    dropout: float | None = option(None, "in the model (default: the model's own)", least=0, below=1)
    batch_tokens: int = option(1024, "most tokens of a side in one optimizer step, padding included", least=1)
    label_smoothing: float = option(0.1, "part of the target that is spread over all tokens", least=0, below=1)
    init: str = option("", "start from the weights of this run or .safetensors file")

    def __post_init__(self) -> None:
        if self.epochs is None:
            self.epochs = 8 if self.data == "cmudict" else 5
        super().__post_init__()


@dataclass
class PrepareOptions(DataOptions):
    out: str = option("prepared", "folder to make")


class Translation(Task):
    """Cross entropy over real target tokens, token accuracy; BLEU and its like by translating."""

    unit = "sentences"

    def __init__(self, data: ParallelData, options: TrainOptions) -> None:
        import torch

        from tasks.data.batching import batches, collate, lengths_of
        from tasks.data.corpus import Corpus

        self.data, self.options, self.tokenizer = data, options, data.tokenizer
        corpus = options.train or options.dataset_path or options.prepared or options.data.startswith("hf:")
        self.primary = Metric("bleu" if corpus and options.data != "cmudict" else "exact_match")
        lengths = data.train.lengths if isinstance(data.train, Corpus) else lengths_of(data.train)
        valid = [tuple(self.tokenizer.encode_batch(pair)) for pair in data.valid.pairs()]
        self.train = Split(
            len(data.train),
            lambda epoch: batches(lengths, options.batch_tokens, options.seed, epoch),
            lambda indices, epoch: collate([data.train[i] for i in indices.tolist()], self.tokenizer),
        )
        self.valid = Split(
            len(valid),
            lambda epoch: torch.arange(len(valid)).split(64),
            lambda indices, epoch: collate([valid[i] for i in indices.tolist()], self.tokenizer),
        )
        self.told = [f"{self.tokenizer.vocab_size} tokens", *(f"{split}: {counts}" for split, counts in data.counts.items())]

    def units(self, batch: Any) -> int:
        return int((batch[2] != self.tokenizer.pad).sum())

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        from torch.nn import functional as F

        (source, target, labels), pad = batch, self.tokenizer.pad
        logits, labels = model(source, target, source != pad).float().flatten(0, 1), labels.flatten()
        smoothing = self.options.label_smoothing if model.training else 0.0
        loss = F.cross_entropy(logits, labels, reduction="sum", ignore_index=pad, label_smoothing=smoothing)
        return loss, {"token_accuracy": ((logits.argmax(-1) == labels) & (labels != pad)).sum()}

    def score(self, model: nn.Module) -> dict[str, float]:
        return self.measured(model, self.data.valid)[1]

    def measured(self, model: Any, held: Held) -> tuple[list[str], dict[str, float]]:
        """Translations, and how good they are."""
        found = translate(model, self.tokenizer, held.sources, longest=self.options.max_length)
        return found, scores(found, held.references, self.options.data)

    def keep(self, folder: Path) -> None:
        self.tokenizer.save(folder / "tokenizer.json")

    def report(self, run: Run, summary: dict[str, Any]) -> dict[str, Any]:
        """Measure the best model on the test set, show what it writes, draw the curves."""
        import zoo
        from tasks import plots, report

        test = self.data.test
        found, tested = self.measured(zoo.load(run.folder / "best.safetensors"), test)
        for note in plots.curves(run.history, run.folder / "curves.png", self.primary):
            print(note)
        texts = zip(test.sources, found, test.references, strict=True)
        examples = [{"source": s, "translation": t, "expected": e} for s, t, e in texts][:50]
        report.write_examples(run.folder, examples)
        for source, got, expected in list(zip(test.sources, found, test.references, strict=True))[:8]:
            print(f"  {source}  ->  {got}" + ("" if got in expected else f"  (expected: {expected[0]})"))
        told = ", ".join(f"{name} {value:.4g}" for name, value in tested.items())
        print(f"test {told}; {summary['seconds']:.1f} s of training; see {run.folder}")
        return {f"test_{name}": value for name, value in tested.items()}


def train(given: dict[str, Any]) -> None:
    from tasks import runs

    def named(o: TrainOptions) -> str:
        what = Path(o.prepared or o.dataset_path or (o.train[0] if o.train else o.data.replace("hf:", ""))).name
        return f"{o.model}-{what}-{o.source}-{o.target}-{time.strftime('%Y%m%d-%H%M%S')}"

    runs.train(TrainOptions, given, named, begin)


def begin(options: TrainOptions, folder: Path) -> tuple[Translation, nn.Module]:
    """Task and model. Errors: `UserError` and `ValueError` for whatever is wrong with options and data."""
    import torch

    import zoo
    from tasks.data.parallel import load_parallel

    check(options)
    data = load_parallel(options)
    torch.manual_seed(options.seed)
    arguments: dict[str, Any] = {"vocab_size": data.tokenizer.vocab_size, "padding": data.tokenizer.pad}
    arguments |= {} if options.dropout is None else {"dropout": options.dropout}
    model = zoo.create(options.model, **arguments)
    model.config |= {"languages": [options.source, options.target], "tokenizer": data.tokenizer.fingerprint}
    if options.init:
        zoo.load_state(model, options.init)
    task = Translation(data, options)
    task.train.batches(0)  # an example that no batch can hold is an error now, and so is a missing package
    scores(["a"], [["a"]], options.data)
    return task, model


@checking_input()
def prepare(given: dict[str, Any]) -> None:
    from tasks.data.parallel import prepare_folder

    options = PrepareOptions(**given)
    check(options)
    for split, counts in prepare_folder(options, Path(options.out)).items():
        print(f"{split}: {counts}")


def check(options: TrainOptions | PrepareOptions) -> None:
    """Errors: `UserError` for options that exclude each other."""
    if options.data != "cldr" and (options.train or options.dataset_path):
        raise UserError(f"--data {options.data}: --train and --dataset_path take its place, give one of them")
    if options.source == options.target:
        raise UserError(f"--target must differ from --source, got {options.target} for both")


COMMANDS = {
    "train": Command(TrainOptions, "train a translator and leave a run in RUNS_DIR/NAME", train),
    "prepare": Command(PrepareOptions, "tokenise a corpus once, into a folder for train --prepared", prepare),
    "translate": Command(TranslateOptions, "read lines, write their translations, in order", translate_lines),
    "evaluate": Command(EvaluateOptions, "measure a saved translator on its test set", evaluate),
}


def main(argv: Sequence[str] | None = None) -> int:
    return commands.main("tasks.translation", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
