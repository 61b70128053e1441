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
from tasks.generation_config import USUAL, Generation, generation_of
from tasks.options import EngineOptions, UserError, option
from tasks.scores import corpus_scores, scores
from tasks.task import Metric, Split, Task
from tasks.translating import translate
from tasks.translation_options import (
    PROGRAM,
    TOKENIZE,
    CorpusOptions,
    EvaluateOptions,
    ExportOptions,
    PrepareOptions,
    TranslateOptions,
)
from tasks.translation_use import evaluate, export, options_of, translate_lines

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor, nn

    from tasks.data.parallel import Held, ParallelData
    from tasks.engine import Run

__all__ = ["TrainOptions", "Translation", "main", "scores", "translate"]


@dataclass
class TrainOptions(EngineOptions, CorpusOptions):
    title, program = "translation", PROGRAM
    model: str = option(None, "an encoder-decoder of zoo.names() (default: transformer_small; with --init that one's)")
    epochs: int = option(None, "passes over the training data (default: 5, for cmudict 8)", least=1)
    lr: float = option(
        None, "peak learning rate; the large models want less, about 0.0005 (default: 0.004, with --init 0.0001)", above=0
    )
    warmup: float = option(0.2, "epochs in which the learning rate rises from zero", least=0)
    clip: float = option(1.0, "largest gradient norm; 0 is off", least=0)
    dropout: float | None = option(None, "in the model (default: the model's own)", least=0, below=1)
    batch_tokens: int = option(
        None, "most tokens of a side in one optimizer step, padding included (default: 1024, with --batch_size no limit)", least=1
    )
    batch_size: int | None = option(None, "most sentences in one optimizer step; like lengths come together", least=1)
    label_smoothing: float = option(0.1, "part of the target that is spread over all tokens", least=0, below=1)
    init: str = option(
        "", "start from this run, with its tokenizer, from a .safetensors file, or from hf:PATH, a folder of Marian's", path=True
    )
    bleu_tokenize: str | None = option(None, "sacrebleu's tokenizer (default: what suits the target language)", TOKENIZE)

    def __post_init__(self) -> None:
        if self.lr is None:
            self.lr = 0.0001 if self.init else 0.004
        self.model = self.model or ""
        if self.batch_tokens is None and self.batch_size is None:
            self.batch_tokens = 1024
        super().__post_init__()


class Translation(Task):
    """Cross entropy over real target tokens, token accuracy; BLEU and its like by translating."""

    unit = "sentences"

    def __init__(self, data: ParallelData, options: TrainOptions, generation: Generation = USUAL) -> None:
        import torch

        from tasks.data.batching import batches, collate, lengths_of
        from tasks.data.corpus import Corpus
        from tasks.data.sources import built_in

        self.data, self.options, self.generation, self.tokenizer = data, options, generation, data.tokenizer
        self.primary = Metric("exact_match" if built_in(options) else "bleu")
        lengths = data.train.lengths if isinstance(data.train, Corpus) else lengths_of(data.train)
        most = options.batch_tokens or (options.batch_size or 1) * int(lengths.max())
        self.require_room(lengths, most)
        sides = (self.tokenizer, self.tokenizer.target)
        texts = zip(*data.valid.pairs(), strict=True)
        valid = list(zip(*(side.encode_batch(x) for side, x in zip(sides, texts, strict=True)), strict=True))
        self.train = Split(
            len(data.train),
            lambda epoch: batches(lengths, most, options.seed, epoch, max_rows=options.batch_size),
            lambda indices, epoch: collate([data.train[i] for i in indices.tolist()], self.tokenizer),
        )
        self.valid = Split(
            len(valid),
            lambda epoch: torch.arange(len(valid)).split(64),
            lambda indices, epoch: collate([valid[i] for i in indices.tolist()], self.tokenizer),
        )
        about = {"source": options.source, "target": options.target, "normalize": options.normalize}
        self.identity = {**about, **data.identity()}
        counts = [f"{split}: {counts}" for split, counts in data.counts.items()]
        self.told = [f"{self.tokenizer.vocab_size} tokens", *counts, *data.notes.values(), *filter(None, [generation.told])]

    def require_room(self, lengths: Tensor, most: int) -> None:
        """Errors: `DataError` that shows a pair which no batch can hold."""
        from tasks.data import DataError

        if (longest := int(lengths.max())) > most:
            worst, counts = int(lengths.amax(1).argmax()), self.data.counts["train"]
            text = self.tokenizer.decode(self.data.train[worst][0])
            known = counts.where and counts.kept == len(lengths)  # of a sample the longest one may be another
            place = f" ({counts.where})" if known else ""
            raise DataError(
                f"pair {worst + 1:,} to train on{place}, {text[:40]!r}, has {longest} tokens, more than the {most} of a whole "
                f"batch: raise --batch_tokens to {longest}, or skip such pairs by --max_length {most}"
            )

    def units(self, batch: Any) -> int:
        return int((batch[2] != self.tokenizer.pad).sum())

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        from torch.nn import functional as F

        (source, target, labels), pad = batch, self.tokenizer.pad
        logits, labels = model(source, target, source != pad).float().flatten(0, 1), labels.flatten()
        smoothing = self.options.label_smoothing if model.training else 0.0
        loss = F.cross_entropy(logits, labels, reduction="sum", ignore_index=pad, label_smoothing=smoothing)
        found = {"token_accuracy": ((logits.argmax(-1) == labels) & (labels != pad)).sum()}
        if smoothing:
            found["plain_loss"] = F.cross_entropy(logits.detach(), labels, reduction="sum", ignore_index=pad)
        return loss, found

    def score(self, model: nn.Module) -> dict[str, float]:
        return self.measured(model, self.data.valid)[1]

    def measured(self, model: Any, held: Held) -> tuple[list[str], dict[str, float], str]:
        """Translations, how good they are, and BLEU's signature; on --device and in --precision."""
        from tasks.saved import placed

        options: Any = self.options
        model, precision = placed(model, options)
        with precision:
            longest = self.generation.longest or options.max_length
            found = translate(model, self.tokenizer, held.sources, longest=longest, generation=self.generation)
        return found, *corpus_scores(found, held.references, options.data, options.target, options.bleu_tokenize or "")

    def keep(self, folder: Path) -> None:
        self.tokenizer.save(folder / "tokenizer.json")

    def report(self, run: Run, summary: dict[str, Any]) -> dict[str, Any]:
        """Measure the best model on the test set, show what it writes, draw the curves."""
        import zoo
        from tasks import plots, report

        test = self.data.test or self.data.valid
        found, tested, signature = self.measured(zoo.load(run.folder / "best.safetensors"), test)
        for note in plots.curves(run.history, run.folder / "curves.png", self.primary):
            print(note)
        texts = zip(test.sources, found, test.references, strict=True)
        examples = [{"source": s, "translation": t, "expected": e} for s, t, e in texts][:50]
        report.write_examples(run.folder, examples)
        for source, got, expected in list(zip(test.sources, found, test.references, strict=True))[:8]:
            print(f"  {source}  ->  {got}" + ("" if got in expected else f"  (expected: {expected[0]})"))
        told = ", ".join(f"{name} {value:.4g}" for name, value in tested.items())
        print(f"test {told}; {summary['seconds']:.1f} s of training; see {run.folder}")
        return {f"test_{name}": value for name, value in tested.items()} | ({"bleu_signature": signature} if signature else {})


def train(given: dict[str, Any]) -> None:
    from tasks import runs

    runs.train(TrainOptions, given, default_name, begin)


def default_name(options: TrainOptions) -> str:
    """Model, data, languages as far as they are known, and time."""
    data = Path(options.prepared or options.dataset_path or (options.train or [options.data.removeprefix("hf:")])[0])
    parts = [options.model or Path(options.init).stem or "transformer_small", data.stem, options.source, options.target]
    return "-".join([*(part for part in parts if part), time.strftime("%Y%m%d-%H%M%S")])


def begin(options: TrainOptions, folder: Path) -> tuple[Translation, nn.Module]:
    """Task and model. Errors: `UserError` and `ValueError` for whatever is wrong with options and data."""
    import torch

    import zoo
    from tasks.data.parallel import load_parallel
    from tasks.starting import start_of

    check(options)
    settle(options, folder)
    scores(["a"], [["a"]], options.data, options.target, options.bleu_tokenize or "")  # a missing package is an error now
    start = start_of(options, folder)
    data = load_parallel(options, start.tokenizer)
    if start.expected not in (None, data.tokenizer.fingerprint):
        raise UserError(f"--init {options.init} was trained with another tokenizer, which it lacks: give its by --tokenizer")
    torch.manual_seed(options.seed)
    arguments = start.arguments | {"vocab_size": data.tokenizer.vocab_size, "padding": data.tokenizer.pad}
    arguments |= {} if options.dropout is None else {"dropout": options.dropout}
    model = zoo.create(start.model, **arguments)
    languages = [language for language in (options.source, options.target) if language]
    model.config |= {"tokenizer": data.tokenizer.fingerprint, **({"languages": languages} if languages else {}), **start.about}
    start.load(model)
    return Translation(data, options, generation_of(model.config.get("huggingface"), data.tokenizer)), model


def settle(options: TrainOptions | PrepareOptions, folder: Path) -> None:
    """What nobody chose: data, normal form and languages of a prepared folder; a run from before there were forms has none."""
    from tasks.data.corpus import read_meta
    from tasks.data.parallel import prepared_from

    prepared = getattr(options, "prepared", "")
    if prepared:
        meta = read_meta(Path(prepared))
        if options.normalize not in (None, form := meta.get("normalize", "none")):
            raise UserError(f"--normalize {options.normalize}: {prepared} was prepared with {form}")
        if options.data not in ("cldr", data := prepared_from(meta, options.data)):  # cldr is what --data is without a word
            raise UserError(f"--data {options.data}: {prepared} was prepared from {data}")
        options.normalize, options.data, options.source = form, data, options.source or meta.get("source")
        options.target = options.target or meta.get("target")
    elif getattr(options, "resume", False) and "normalize" not in options_of(folder):
        options.normalize = "none"
    options.normalize = options.normalize or "nfc"
    if isinstance(options, TrainOptions):
        options.epochs = options.epochs or (8 if options.data == "cmudict" else 5)


@checking_input()
def prepare(given: dict[str, Any]) -> None:
    from tasks.data.parallel import prepare_folder

    options = PrepareOptions(**given)
    check(options)
    settle(options, Path(options.out))
    notes: dict[str, str] = {}
    counts = prepare_folder(options, Path(options.out), notes)
    print(*(f"{split}: {kept}" for split, kept in counts.items()), *notes.values(), sep="\n")


def check(options: TrainOptions | PrepareOptions) -> None:
    """Errors: `UserError` for options that exclude each other."""
    from tasks.data.tables import columns_of

    if options.data != "cldr" and (options.train or options.dataset_path):
        raise UserError(f"--data {options.data}: --train and --dataset_path take its place, give one of them")
    if options.train and options.dataset_path:
        raise UserError("--train and --dataset_path name the same data, give one of them")
    if options.source is not None and options.source == options.target:
        raise UserError(f"--target must differ from --source, got {options.target} for both")
    columns_of(options.columns)


COMMANDS = {
    "train": Command(
        TrainOptions,
        "train a translator and leave a run in RUNS_DIR/NAME",
        train,
        "--train corpus.de corpus.en --valid valid.de valid.en --name own",
        "--train {}",
    ),
    "prepare": Command(
        PrepareOptions,
        "tokenise a corpus once, into a folder for train --prepared",
        prepare,
        "--dataset_path corpora --source de --target en --out prepared",
        "--dataset_path {}",
    ),
    "translate": Command(
        TranslateOptions,
        "read lines, write their translations, in order",
        translate_lines,
        "--name own --beam 4 --input lines.de --output lines.en",
        "--input FILE",
    ),
    "evaluate": Command(
        EvaluateOptions,
        "measure a saved translator on its test set",
        evaluate,
        "--name own --beam 4 --output scored.tsv",
        "--name {}",
    ),
    "export": Command(
        ExportOptions,
        "write a fine-tuned translator as transformers' Marian",
        export,
        "--name tuned --out tuned-hf",
        "--name {}",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    return commands.main(PROGRAM, COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
