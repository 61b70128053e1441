"""Train and use a language model: ``python -m tasks.text_generation`` learns to write Python from Python's standard library."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import commands
from tasks.commands import Command
from tasks.continuing import generate
from tasks.language_modelling import foretell, total
from tasks.options import OPTIMIZERS, EngineOptions, Options, UserError, did_you_mean, option
from tasks.saved import placed
from tasks.task import Metric, Split, Task
from tasks.text_generation_use import PROGRAM, TEXTS, EvaluateOptions, GenerateOptions, evaluate, write
from tasks.text_models import LearningOptions

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor, nn

    from tasks.data.documents import Documents
    from tasks.data.tokenizer import TextTokenizer
    from tasks.engine import Run


DEFAULT = "llama_small"


@dataclass
class DocumentOptions(Options):
    title = "data"
    data: str = option("stdlib", "stdlib (Python's own standard library) or hf:NAME")
    train: list[str] = option((), f"{TEXTS}, in place of --data", many=True, path=True)
    valid: list[str] = option((), "the same, to choose the best model by (default: a part of --train)", many=True, path=True)
    test: list[str] = option((), "the same, to measure at the end (default: a part of --train)", many=True, path=True)
    normalize: str = option("none", "Unicode normal form of all text", ("nfc", "nfkc", "none"))
    tokenizer: str = option("", "tokenizer.json to use (default: one is trained, or that of --init)", path=True)
    level: str = option("bpe", "what a trained tokenizer's tokens are", ("bpe", "unigram", "char"))
    vocab_size: int = option(4096, "tokens of a trained tokenizer, at most", least=260, most=10_000_000)
    seed: int = option(0, "of initial weights, order, dropout and samples", least=0)


@dataclass
class TrainOptions(EngineOptions, LearningOptions, DocumentOptions):
    title, program = "text generation", PROGRAM
    model: str = option("", f"a language model of zoo.names() (default: {DEFAULT}, or what --init is)")
    init: str = option("", "start from a run, a folder or file of one, or hf:PATH, a folder of Hugging Face's", path=True)
    context: int = option(256, "tokens that the model sees", least=2)
    stride: int = option(None, "tokens that are foretold at a time at the end (default: half of the context)", least=1)
    mask_documents: bool = option(False, "documents that share a context do not see each other, and positions restart in each")
    epochs: int = option(3, "parts of the training text, or passes over it", least=1)
    epoch_windows: int | None = option(None, "contexts in an epoch (default: for stdlib 1,500, else all)", least=1)
    batch_size: int = option(8, "contexts in an optimizer step", least=1)
    optimizer: str = option(None, "(default: muon, after --init and with --tensor adamw)", OPTIMIZERS)
    lr: float = option(None, "peak learning rate (default: 0.01 for muon, else 0.002, after --init 0.0001)", above=0)
    beta2: float = option(0.99, "decay of the mean of squared gradients", least=0, below=1)
    warmup: float = option(0.1, "epochs in which the learning rate rises from zero", least=0)
    clip: float = option(1.0, "largest gradient norm; 0 is off", least=0)
    weight_decay: float = option(0.1, "on matrices only", least=0)
    dropout: float | None = option(None, "in the model (default: the model's own)", least=0, below=1)
    layers: int | None = option(None, "of a new model (default: its own)", least=1)
    dim: int | None = option(None, "of a new model (default: its own)", least=1)
    sample: str = option("def ", "what the samples begin with that are written while it learns")

    def __post_init__(self) -> None:
        if self.epoch_windows is None and self.data == "stdlib" and not self.train:
            self.epoch_windows = 1500
        self.stride = self.stride or max(1, self.context // 2)
        self.optimizer = self.optimizer or ("adamw" if self.init or self.tensor > 1 else "muon")
        self.lr = (0.0001 if self.init else 0.01 if self.optimizer == "muon" else 0.002) if self.lr is None else self.lr
        super().__post_init__()
        if self.stride > self.context:
            raise UserError(f"--stride must be at most --context, {self.context}, got {self.stride}")


class TextGeneration(Task):
    """Cross entropy over all tokens, bits per byte; samples after every epoch."""

    unit = "contexts"
    primary = Metric("bits_per_byte", lower_is_better=True)

    def __init__(self, data: Documents, tokenizer: TextTokenizer, options: TrainOptions) -> None:
        import torch

        from tasks.data.windows import IGNORED, Windows, collate, joined, strided

        self.data, self.tokenizer, self.options, self.ignored = data, tokenizer, options, IGNORED
        ids = {name: tokenizer.encode_batch([document.text for document in split]) for name, split in data.splits()}
        sizes = {name: sum(len(document.text.encode()) for document in split) for name, split in data.splits()}
        self.bytes_per_token = {name: size / sum(len(row) + 1 for row in ids[name]) for name, size in sizes.items()}
        text = joined(ids["train"], tokenizer.eos)
        windows = Windows(text, min(options.context, len(text) - 1), options.seed, options.epoch_windows)
        valid = strided(ids["valid"], tokenizer.eos, options.context, options.context)
        self.train = Split(
            windows.size, lambda epoch: windows.batches(epoch, options.batch_size), lambda n, epoch: windows.batch(n)
        )
        self.valid = Split(
            len(valid),
            lambda epoch: torch.arange(len(valid)).split(max(16, options.batch_size)),
            lambda n, epoch: collate([valid[i] for i in n.tolist()], tokenizer.pad_or_eos),
        )
        self.identity = {"tokenizer": tokenizer.fingerprint, "normalize": options.normalize, **data.identity()}
        part = windows.size * options.epochs / windows.per_round
        self.told = [
            *data.told(),
            f"{tokenizer.vocab_size} tokens, {self.bytes_per_token['test']:.2f} bytes of the test texts each; "
            f"{options.epochs} epochs of {windows.size:,} contexts are {part:.2f} passes over {len(text):,} tokens",
        ]

    def units(self, batch: Any) -> int:
        return int((batch[1] != self.ignored).sum())

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        import math

        from torch.nn import functional as F

        tokens, labels = batch
        apart = self.apart(tokens) if self.options.mask_documents and model.training else {}  # others have one document a row
        logits, labels = model(tokens, **apart).float().flatten(0, 1), labels.flatten()
        loss = F.cross_entropy(logits, labels, reduction="sum", ignore_index=self.ignored)
        per_byte = self.bytes_per_token["train" if model.training else "valid"] * math.log(2)
        return loss, {"bits_per_byte": loss.detach() / per_byte}

    def apart(self, tokens: Tensor) -> dict[str, Tensor]:
        """The mask (b, 1, n, n) and the positions (b, n) by which each document of a window is computed as if it were alone."""
        from layers import masks
        from tasks.data.windows import documents_of

        documents = documents_of(tokens, self.tokenizer.eos)
        return {"mask": masks.packed(documents), "positions": masks.packed_positions(documents)}

    def score(self, model: Any) -> dict[str, float]:
        """Writes a sample."""
        if commands.first_process():
            print("  ...", self.written(model, 60).replace("\n", "\n      "), flush=True)
        return {}

    def written(self, model: Any, tokens: int) -> str:
        """A sample, the same every time."""
        from zoo.generation.sampling import Sampler

        options = self.options
        sampler = Sampler(temperature=0.8, top_p=0.95, seed=options.seed)
        pieces = generate(model, self.tokenizer, options.sample, context=options.context, max_new_tokens=tokens, choose=sampler)
        return options.sample + "".join(pieces)

    def keep(self, folder: Path) -> None:
        self.tokenizer.save(folder / "tokenizer.json")

    def report(self, run: Run, summary: dict[str, Any]) -> dict[str, Any]:
        """Measure the best model on the test texts, beside compressors; samples, curves."""
        import zoo
        from tasks import plots, report
        from tasks.data.documents import compressors

        options: Any = self.options
        model, precision = placed(zoo.load(run.folder / "best.safetensors"), options)
        with precision:
            found = total(list(foretell(model, self.tokenizer, self.data.test, context=options.context, stride=options.stride)))
            samples = [self.written(model, 200)]
        for note in plots.curves(run.history, run.folder / "curves.png", self.primary):
            print(note)
        report.write_examples(run.folder, [{"sample": text} for text in samples])
        print(samples[0])
        others = compressors(self.data.train, self.data.test)
        told = ", ".join(f"{name} {bits:.3f}" for name, bits in others.items())
        print(
            f"test {found.bits_per_byte:.3f} bits per byte ({told}); perplexity {found.perplexity:.2f}, {found.tokens:,} tokens"
        )
        print(f"{summary['seconds']:.1f} s of training; see {run.folder}")
        return {"test_bits_per_byte": found.bits_per_byte, "test_perplexity": found.perplexity, "compressors": others}


def train(given: dict[str, Any]) -> None:
    from tasks import runs

    runs.train(TrainOptions, given, default_name, begin)


def default_name(options: TrainOptions) -> str:
    data = Path((options.train or [options.data.removeprefix("hf:")])[0])
    model = options.model or (Path(options.init.removeprefix("hf:")).stem if options.init else DEFAULT)
    return f"{model}-{data.stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def begin(options: TrainOptions, folder: Path) -> tuple[TextGeneration, nn.Module]:
    """Task and model. Errors: `UserError` and `ValueError` for whatever is wrong with options, data and weights."""
    import torch

    import zoo
    from tasks import text_models
    from tasks.data.documents import load
    from zoo.files import read_json
    from zoo.gpt import CausalLM

    place, weights = text_models.place_of(options, folder)
    text_models.require_learnt(options)
    config = next((read_json(at / "config.json") for at in (folder, place) if at and (at / "config.json").is_file()), {})
    name = options.model or text_models.name_of(config, place or folder, options.init, DEFAULT)
    require_language_model(name, "--model" if options.model else f"--init {options.init}:")
    data = load(options.data, options.train, options.valid, options.test, options.normalize)
    texts = (document.text for document in data.train)
    tokenizer = text_models.tokenizer_of(options, texts, [at for at in (folder, place) if at]).require("eos")
    torch.manual_seed(options.seed)
    wanted = {"dropout": options.dropout} | ({} if weights else {"layers": options.layers, "dim": options.dim})
    arguments: dict[str, Any] = {n: value for n, value in wanted.items() if value is not None}
    if weights:
        model = zoo.create(name, weights=weights, **arguments)
    else:
        arguments |= {"max_positions": options.context} if "max_positions" in zoo.arguments(name) else {}
        arguments = config["arguments"] if place is None and config else arguments | {"vocab_size": tokenizer.vocab_size}
        model = zoo.create(name, **arguments)
    tokenizer.require_vocab_size(text_models.vocab_size_of(model))
    most = getattr(getattr(model, "positions", None), "max_positions", options.context)
    if options.context > most:
        raise UserError(f"--context must be {most} or less for {name}, got {options.context}")
    if options.mask_documents and not isinstance(model, CausalLM):
        raise UserError(f"--mask_documents is for models with attention, {name} has a state that goes on")
    model.config |= {"tokenizer": tokenizer.fingerprint, "context": options.context}
    task = TextGeneration(data, tokenizer, options)
    task.told = [*task.told, *text_models.limited(model, options)]
    return task, model


def require_language_model(name: str, where: str = "--model") -> None:
    """Errors: `UserError` for a model that does not go on from tokens alone, with the nearest one."""
    import zoo

    known = zoo.names(zoo.LanguageModel)
    if name not in known:
        raise UserError(f"{where} {name} is no language model{did_you_mean(name, known)}; there are {', '.join(known)}")


COMMANDS = {
    "train": Command(
        TrainOptions, "train a language model, leave a run in RUNS_DIR/NAME", train, "--train book.txt --name own", "--train {}"
    ),
    "generate": Command(
        GenerateOptions, "go on from a prompt", write, '--name own --prompt "def main(" --temperature 0.7', "--prompt {}"
    ),
    "evaluate": Command(
        EvaluateOptions, "measure a saved model in bits per byte", evaluate, "--name own --output bits.csv", "--name {}"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    return commands.main(PROGRAM, COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
