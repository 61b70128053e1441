"""Train and use a translator: ``python -m tasks.translation`` learns to write dates, times and amounts in another language."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.options import EngineOptions, UserError, option, parse

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor, nn

    from tasks.data.parallel import ParallelData
    from tasks.data.tokenizer import TextTokenizer


@dataclass
class DataOptions:
    data: str = option("cldr", "cldr (dates, amounts, names as Unicode writes them), cmudict (spelling to phonemes), or hf:NAME")
    source: str = option("de", "language to translate from; for cldr any of its locales")
    target: str = option("en", "language to translate into")
    train: list[str] = option((), "two files of lines, or one .tsv, .jsonl, .po or .mo file, in place of --data", many=True)
    valid: list[str] = option((), "the same, to validate on", many=True)
    test: list[str] = option((), "the same, to test on (default: --valid)", many=True)
    dataset_path: str = option("", "folder with train, valid and test files, in place of --data")
    pairs: int = option(50_000, "different training pairs of cldr")
    tokenizer: str = option("", "tokenizer.json to use (default: one is trained)")
    level: str | None = option(None, "what a trained tokenizer's tokens are", ("bpe", "unigram", "word", "char"))
    vocab_size: int | None = option(None, "tokens of a trained tokenizer, at most (default: 8000, for cldr 1000)")
    max_length: int = option(256, "tokens in a sentence; pairs with longer ones are skipped and counted")
    seed: int = option(0, "of the data, initial weights, order and dropout")


@dataclass
class TrainOptions(EngineOptions, DataOptions):
    prepared: str = option("", "folder that `prepare` has left, in place of --data")
    model: str = option("transformer_small", "a name that zoo.names() knows")
    epochs: int = option(None, "passes over the training data (default: 5, for cmudict 8)")
    lr: float = option(0.004, "peak learning rate; the large models want less, about 0.0005")
    warmup: float = option(0.2, "epochs in which the learning rate rises from zero")
    clip: float = option(1.0, "largest gradient norm; 0 is off")
    dropout: float | None = option(None, "in the model (default: the model's own)")
    batch_tokens: int = option(1024, "most tokens of a side in one optimizer step, padding included")
    label_smoothing: float = option(0.1, "part of the target that is spread over all tokens")
    init: str = option("", "start from the weights of this run or .safetensors file")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is None:
            self.epochs = 8 if self.data == "cmudict" else 5


@dataclass
class PrepareOptions(DataOptions):
    out: str = option("prepared", "folder to make")


@dataclass
class SavedOptions:
    name: str = option("", "run to use (default: the latest translator under --runs_dir)")
    runs_dir: str = option("runs", "folder of all runs")
    beam: int = option(1, "hypotheses that are followed; 1 is greedy")
    length_penalty: float = option(1.0, "above 0 favours long translations")
    batch_size: int = option(64, "sentences at a time")
    max_length: int = option(256, "most tokens of a sentence, and of its translation")
    compile: bool = option(False, "make the model faster first, which takes a minute or two: for thousands of sentences")


@dataclass
class TranslateOptions(SavedOptions):
    input: str = option("-", "file of lines; - is standard input")
    output: str = option("-", "file to write; - is standard output")
    attention: str = option("", "PNG to draw the cross-attention of the first sentence to")


@dataclass
class EvaluateOptions(SavedOptions):
    test: list[str] = option((), "files to test on (default: the test set of the run)", many=True)


COMMANDS = {
    "train": (TrainOptions, "train a translator and leave a run in RUNS_DIR/NAME"),
    "prepare": (PrepareOptions, "tokenise a corpus once, into a folder for train --prepared"),
    "translate": (TranslateOptions, "read lines, write their translations, in order"),
    "evaluate": (EvaluateOptions, "measure a saved translator on its test set"),
}


class Translation:
    """The task for `tasks.engine`: cross entropy over real target tokens, token accuracy; BLEU and its like by translating."""

    unit = "sentences"

    def __init__(self, data: ParallelData, options: TrainOptions) -> None:
        from tasks.data.corpus import Corpus, lengths_of

        self.data, self.options = data, options
        self.lengths = data.train.lengths if isinstance(data.train, Corpus) else lengths_of(data.train)
        self.valid = [tuple(data.tokenizer.encode_batch(pair)) for pair in data.valid.pairs()]
        self.train_size, self.test_size = len(data.train), len(self.valid)

    def batches(self, epoch: int | None) -> Sequence[Tensor]:
        import torch

        from tasks.data.corpus import batches

        return (
            torch.arange(self.test_size).split(64)
            if epoch is None
            else batches(self.lengths, self.options.batch_tokens, self.options.seed, epoch)
        )

    def batch(self, indices: Tensor, epoch: int | None) -> tuple[Tensor, Tensor, Tensor]:
        from tasks.data.corpus import collate

        examples = self.valid if epoch is None else self.data.train
        return collate([examples[i] for i in indices.tolist()])

    def units(self, batch: Any) -> int:
        from tasks.data.tokenizer import PAD

        return int((batch[2] != PAD).sum())

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        from torch.nn import functional as F

        from tasks.data.tokenizer import PAD

        source, target, labels = batch
        logits, labels = model(source, target, source != PAD).float().flatten(0, 1), labels.flatten()
        smoothing = self.options.label_smoothing if model.training else 0.0
        loss = F.cross_entropy(logits, labels, reduction="sum", ignore_index=PAD, label_smoothing=smoothing)
        return loss, {"token_accuracy": ((logits.argmax(-1) == labels) & (labels != PAD)).sum()}

    def score(self, model: nn.Module) -> dict[str, float]:
        held = self.data.valid
        found = translate(model, self.data.tokenizer, held.sources, longest=self.options.max_length)
        return scores(found, held.references, self.options.data)


def translate(
    model: Any, tokenizer: TextTokenizer, sentences: Sequence[str], *, beam: int = 1, length_penalty: float = 1.0,
    batch_size: int = 64, longest: int = 256,
) -> list[str]:  # fmt: skip
    """Translations in the order of the sentences, which are decoded in batches of like length."""
    import torch

    from tasks.data.corpus import padded
    from tasks.data.tokenizer import BOS, EOS, PAD
    from zoo.generation import decoding

    device = next(model.parameters()).device
    encoded = [[*ids, EOS] for ids in tokenizer.encode_batch(sentences)]
    found: dict[int, str] = {}

    def limit(row: int) -> int:
        """Of the translation's tokens; alike for all sentences of a batch, and so never a matter of the others in it."""
        return min(longest, 3 * 16 * math.ceil(len(encoded[row]) / 16) + 20)

    for most, group in groupby(sorted(range(len(encoded)), key=lambda row: len(encoded[row])), limit):
        while rows := list(islice(group, batch_size)):
            source = padded([encoded[row] for row in rows]).to(device)
            decoder = model.start(source, source != PAD, capacity=most + 1)
            options: dict[str, Any] = dict(max_new_tokens=most, stop=(EOS,), pad=PAD)
            prompt = torch.full((len(rows), 1), BOS, device=device)
            if beam == 1:
                tokens = decoding.greedy(decoder, prompt, **options)
            else:
                tokens = decoding.beam(decoder, prompt, beams=beam, length_penalty=length_penalty, **options).tokens[:, 0]
            found.update(zip(rows, tokenizer.decode_batch(tokens.tolist()), strict=True))
    return [found[i] for i in range(len(encoded))]


def scores(hypotheses: Sequence[str], references: Sequence[Sequence[str]], data: str = "") -> dict[str, float]:
    """Exact match (with any reference, 0 to 1), BLEU and chrF of sacrebleu (0 to 100); of cmudict error rates instead."""
    from tasks.data.text import optional

    exact = sum(h in r for h, r in zip(hypotheses, references, strict=True)) / max(1, len(hypotheses))
    if data == "cmudict":
        rate = phoneme_error_rate(hypotheses, references)
        return {"exact_match": exact, "phoneme_error_rate": rate, "word_error_rate": 1 - exact}
    sacrebleu = optional("sacrebleu")
    most = max(map(len, references), default=1)
    columns = [[r[n] if n < len(r) else None for r in references] for n in range(most)]
    return {
        "exact_match": exact,
        "bleu": sacrebleu.corpus_bleu(list(hypotheses), columns).score,
        "chrf": sacrebleu.corpus_chrf(list(hypotheses), columns).score,
    }


def phoneme_error_rate(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Phonemes to insert, delete or replace, over all that are due; a word spoken in several ways is held against the nearest."""
    from tasks.data.text import optional

    distance = optional("rapidfuzz.distance").Levenshtein.distance
    errors = due = 0
    for hypothesis, variants in zip(hypotheses, references, strict=True):
        found, rights = hypothesis.split(), [variant.split() for variant in variants]
        right = min(rights, key=lambda right: distance(found, right))
        errors, due = errors + distance(found, right), due + len(right)
    return errors / max(1, due)


def train(given: dict[str, Any]) -> None:
    import torch

    import zoo
    from tasks.data.parallel import load_parallel
    from tasks.engine import Run
    from tasks.runs import checking_input, open_folder
    from zoo import files

    def named(o: TrainOptions) -> str:
        what = Path(o.prepared or o.dataset_path or (o.train[0] if o.train else o.data.replace("hf:", ""))).name
        return f"{o.model}-{what}-{o.source}-{o.target}-{time.strftime('%Y%m%d-%H%M%S')}"

    with checking_input():
        options, folder = open_folder(TrainOptions, given, named)
        check(options)
        data = load_parallel(options)
        torch.manual_seed(options.seed)
        dropout = {} if options.dropout is None else {"dropout": options.dropout}
        model = zoo.create(options.model, vocab_size=data.tokenizer.vocab_size, **dropout)
        model.config |= {"languages": [options.source, options.target], "tokenizer": data.tokenizer.fingerprint}
        if options.init:
            zoo.load_state(model, options.init)
        task = Translation(data, options)
        task.batches(0)  # an example that no batch can hold is an error now, and so is a missing package
        scores(["a"], [["a"]], options.data)
    corpus = options.train or options.dataset_path or options.prepared or options.data.startswith("hf:")
    run = Run(task, model, options, folder, primary="bleu" if corpus and options.data != "cmudict" else "exact_match")
    if run.main:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / "options.json", asdict(options) | {"resume": False, "name": folder.name})
        files.write_json(folder / "config.json", model.config)
        data.tokenizer.save(folder / "tokenizer.json")
        print(f"{options.model}, {sum(p.numel() for p in model.parameters()):,} parameters, {data.tokenizer.vocab_size} tokens")
        for split, counts in data.counts.items():
            print(f"{split}: {counts}", flush=True)
    run.accelerator.wait_for_everyone()
    if options.resume:
        with checking_input():
            run.restore()
    if run.finished and (folder / "curves.png").exists():
        run.accelerator.print(f"{folder} is finished: nothing left to do")
        return
    summary = run.fit()
    if run.main:
        report(folder, run.history, summary, task)


def report(folder: Path, history: list[dict[str, Any]], summary: dict[str, Any], task: Translation) -> None:
    """Measure the best model on the test set, show what it writes, draw the curves."""
    import zoo
    from tasks import plots
    from zoo import files

    model, data, options = zoo.load(folder / "best.safetensors"), task.data, task.options
    found = translate(model, data.tokenizer, data.test.sources, longest=options.max_length)
    measured = scores(found, data.test.references, options.data)
    files.write_json(folder / "summary.json", summary | measured)
    plots.curves(history, folder / "curves.png")
    for source, got, due in list(zip(data.test.sources, found, data.test.references, strict=True))[:8]:
        print(f"  {source}  ->  {got}" + ("" if got in due else f"  (should be: {due[0]})"))
    told = ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
    print(f"test {told}; {summary['seconds']:.1f} s of training; see {folder}")


def prepare(given: dict[str, Any]) -> None:
    from tasks.data.parallel import prepare_folder

    options = PrepareOptions(**given)
    check(options)
    for split, counts in prepare_folder(options, Path(options.out)).items():
        print(f"{split}: {counts}")


def translate_lines(given: dict[str, Any]) -> None:
    """Lines in, lines out: nothing is written before all of them are translated."""
    from tasks.data.text import lines
    from zoo import files

    options = TranslateOptions(**given)
    model, tokenizer, folder = load_run(options)
    if options.input == "-":
        sentences = sys.stdin.read().split("\n")
        sentences = sentences[:-1] if sentences[-1] == "" else sentences
    else:
        sentences = list(lines(Path(options.input)))
    for n, ids in enumerate(tokenizer.encode_batch(sentences), start=1):
        if len(ids) >= options.max_length:
            raise UserError(f"--max_length: line {n} has {len(ids)} tokens, at most {options.max_length - 1} are allowed")
    found = translated(model, tokenizer, [spell(line, folder) for line in sentences], options)
    text = "".join(f"{line}\n" for line in found)
    if options.attention and sentences:
        draw_attention(model, tokenizer, spell(sentences[0], folder), found[0], Path(options.attention))
    if options.output == "-":
        print(text, end="")
    else:
        files.write_bytes(Path(options.output), text.encode())


def spell(line: str, folder: Path) -> str:
    """A word letter by letter for a model of pronunciations."""
    return " ".join(line.strip().lower()) if trained_on(folder).get("data") == "cmudict" else line.strip()


def trained_on(folder: Path) -> dict[str, Any]:
    from zoo import files

    return files.read_json(folder / "options.json") if (folder / "options.json").exists() else {}


def translated(model: Any, tokenizer: TextTokenizer, sentences: Sequence[str], options: SavedOptions) -> list[str]:
    """As `translate`; an empty sentence stays empty."""
    import torch

    import zoo

    model = zoo.optimize(model, torch.zeros(2, 8, dtype=torch.long)) if options.compile else model
    full = [n for n, sentence in enumerate(sentences) if sentence]
    chosen = {"beam": options.beam, "length_penalty": options.length_penalty, "batch_size": options.batch_size}
    found = translate(model, tokenizer, [sentences[n] for n in full], longest=options.max_length, **chosen)
    by_line = dict(zip(full, found, strict=True))
    return [by_line.get(n, "") for n in range(len(sentences))]


def evaluate(given: dict[str, Any]) -> None:
    from tasks.data.parallel import Held, load_parallel
    from tasks.data.text import optional, read

    options = EvaluateOptions(**given)
    model, tokenizer, folder = load_run(options)
    trained = TrainOptions(**{k: v for k, v in trained_on(folder).items() if k in TrainOptions.__dataclass_fields__})
    if options.test:
        held = Held.of(read(options.test, trained.source, trained.target))
    else:
        trained.tokenizer = str(folder / "tokenizer.json")
        held = load_parallel(trained).test
    found = translated(model, tokenizer, held.sources, options)
    for name, value in scores(found, held.references, trained.data).items():
        print(f"{name} {value:.4f}")
    if trained.data == "cmudict":
        return
    bleu = optional("sacrebleu.metrics").BLEU()
    bleu.corpus_score(found, [[targets[0] for targets in held.references]])
    print(f"{len(found):,} sentences, BLEU signature {bleu.get_signature()}")


def load_run(options: SavedOptions) -> tuple[Any, TextTokenizer, Path]:
    """Model, tokenizer and folder of a run. Errors: `UserError` where there is none; `DataError` if the two do not match."""
    import zoo
    from tasks.data.tokenizer import load_tokenizer

    if options.beam < 1:
        raise UserError(f"--beam must be 1 or more, got {options.beam}")
    runs = sorted(Path(options.runs_dir).glob("*/tokenizer.json"), key=lambda path: path.stat().st_mtime)
    if not options.name and not runs:
        raise UserError(f"no translator under {options.runs_dir}: train one, or give --name")
    folder = Path(options.runs_dir) / options.name if options.name else runs[-1].parent
    model = zoo.load(folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.require_vocab_size(model.config["arguments"]["vocab_size"])
    if model.config.get("tokenizer") != tokenizer.fingerprint:
        raise UserError(f"{folder / 'tokenizer.json'} is not the one that the model was trained with")
    return model, tokenizer, folder


def draw_attention(model: Any, tokenizer: TextTokenizer, source: str, target: str, path: Path) -> None:
    """The last decoder block's attention to the source, the mean over its heads: a row a token that was written."""
    import torch

    from tasks import plots
    from tasks.data.corpus import collate

    ids = tokenizer.encode_batch([source, target])
    tokens, written, _ = collate([(ids[0], ids[1])])
    attention, seen = model.decoder[-1].cross_attention.sublayer, []
    hook = attention.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    with torch.inference_mode():
        model(tokens, written, tokens != 0)
        hook.remove()
        args, kwargs = seen[0]
        weights = attention(*args, **{**kwargs, "return_weights": True})[1][0].mean(0)
    names = [[tokenizer.decode([token]) or "</s>" for token in side] + ["</s>"] for side in ids]
    plots.attention(weights, names[0], names[1], path)


def check(options: TrainOptions | PrepareOptions) -> None:
    """Errors: `UserError` that names the first option out of range."""
    if not 0 <= (smoothing := getattr(options, "label_smoothing", 0.0)) < 1:
        raise UserError(f"--label_smoothing must be at least 0 and below 1, got {smoothing}")
    for name in ("batch_tokens", "pairs", "max_length"):
        if getattr(options, name, 1) < 1:
            raise UserError(f"--{name} must be 1 or more, got {getattr(options, name)}")
    if options.data != "cldr" and (options.train or options.dataset_path):
        raise UserError(f"--data {options.data}: --train and --dataset_path take its place, give one of them")
    if options.source == options.target:
        raise UserError(f"--target must differ from --source, got {options.target} for both")


def main(argv: Sequence[str] | None = None) -> int:
    command, given = parse("tasks.translation", COMMANDS, sys.argv[1:] if argv is None else argv)
    from tasks.runs import checking_input
    from tasks.runs import main as guarded

    def run() -> None:
        if command == "train":
            return train(given)
        with checking_input():
            return {"prepare": prepare, "translate": translate_lines, "evaluate": evaluate}[command](given)

    return guarded(run)


if __name__ == "__main__":
    sys.exit(main())
