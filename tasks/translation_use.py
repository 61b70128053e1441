"""Use a trained translator: translate lines and show what it attends to, measure it on a test set."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.commands import checking_input
from tasks.options import Options, UserError, option
from tasks.scores import scores

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from tasks.data.tokenizer import TextTokenizer


@dataclass
class DataOptions(Options):
    data: str = option("cldr", "cldr (dates, amounts, names as Unicode writes them), cmudict (spelling to phonemes), or hf:NAME")
    source: str = option("de", "language to translate from; for cldr any of its locales")
    target: str = option("en", "language to translate into")
    train: list[str] = option((), "two files of lines, or one .tsv, .jsonl, .po or .mo file, in place of --data", many=True)
    valid: list[str] = option((), "the same, to validate on", many=True)
    test: list[str] = option((), "the same, to test on (default: --valid)", many=True)
    dataset_path: str = option("", "folder with train, valid and test files, in place of --data")
    pairs: int = option(50_000, "different training pairs of cldr", least=1)
    tokenizer: str = option("", "tokenizer.json to use (default: one is trained)")
    level: str | None = option(None, "what a trained tokenizer's tokens are", ("bpe", "unigram", "word", "char"))
    vocab_size: int | None = option(None, "tokens of a trained tokenizer, at most (default: 8000, for cldr 1000)", least=1)
    max_length: int = option(256, "tokens in a sentence; pairs with longer ones are skipped and counted", least=1)
    seed: int = option(0, "of the data, initial weights, order and dropout", least=0)


@dataclass
class CorpusOptions(DataOptions):
    prepared: str = option("", "folder that `prepare` has left, in place of --data")


@dataclass
class SavedOptions(Options):
    name: str = option("", "run to use (default: the latest translator under --runs_dir)")
    runs_dir: str = option("runs", "folder of all runs")
    beam: int = option(1, "hypotheses that are followed; 1 is greedy", least=1)
    length_penalty: float = option(1.0, "above 0 favours long translations")
    batch_size: int = option(64, "sentences at a time", least=1)
    max_length: int = option(256, "most tokens of a sentence, and of its translation", least=1)
    compile: bool = option(False, "make the model faster first, which takes a minute or two: for thousands of sentences")


@dataclass
class TranslateOptions(SavedOptions):
    input: str = option("-", "file of lines; - is standard input")
    output: str = option("-", "file to write; - is standard output")
    attention: str = option("", "PNG to draw the cross-attention of the first sentence to")


@dataclass
class EvaluateOptions(SavedOptions):
    test: list[str] = option((), "files to test on (default: the test set of the run)", many=True)


@checking_input()
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


@checking_input()
def evaluate(given: dict[str, Any]) -> None:
    from tasks.data.parallel import Held, load_parallel
    from tasks.data.text import optional, read

    options = EvaluateOptions(**given)
    model, tokenizer, folder = load_run(options)
    trained = CorpusOptions(**{k: v for k, v in trained_on(folder).items() if k in CorpusOptions.__dataclass_fields__})
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


def translate(
    model: Any, tokenizer: TextTokenizer, sentences: Sequence[str], *, beam: int = 1, length_penalty: float = 1.0,
    batch_size: int = 64, longest: int = 256,
) -> list[str]:  # fmt: skip
    """Translations in the order of the sentences, which are decoded in batches of like length."""
    import torch

    from tasks.data.batching import padded
    from zoo.generation import decoding

    device, pad, bos, eos = next(model.parameters()).device, tokenizer.pad, tokenizer.bos, tokenizer.eos
    encoded = [[*ids, eos] for ids in tokenizer.encode_batch(sentences)]
    found: dict[int, str] = {}

    def limit(row: int) -> int:
        """Most tokens of the translation: the same for all sentences of a batch, so that none depends on the others in it."""
        return min(longest, 3 * 16 * math.ceil(len(encoded[row]) / 16) + 20)

    for most, group in groupby(sorted(range(len(encoded)), key=lambda row: len(encoded[row])), limit):
        while rows := list(islice(group, batch_size)):
            source = padded([encoded[row] for row in rows], pad).to(device)
            decoder = model.start(source, source != pad, capacity=most + 1)
            options: dict[str, Any] = dict(max_new_tokens=most, stop=(eos,), pad=pad)
            prompt = torch.full((len(rows), 1), bos, device=device)
            if beam == 1:
                tokens = decoding.greedy(decoder, prompt, **options)
            else:
                tokens = decoding.beam(decoder, prompt, beams=beam, length_penalty=length_penalty, **options).tokens[:, 0]
            found.update(zip(rows, tokenizer.decode_batch(tokens.tolist()), strict=True))
    return [found[i] for i in range(len(encoded))]


def draw_attention(model: Any, tokenizer: TextTokenizer, source: str, target: str, path: Path) -> None:
    """The last decoder block's attention to the source, the mean over its heads: a row a token that was written."""
    import torch

    from tasks import plots
    from tasks.data.batching import collate

    ids = tokenizer.encode_batch([source, target])
    tokens, written, _ = collate([(ids[0], ids[1])], tokenizer)
    attention, seen = model.decoder[-1].cross_attention.sublayer, []
    hook = attention.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    with torch.inference_mode():
        model(tokens, written, tokens != tokenizer.pad)
        hook.remove()
        args, kwargs = seen[0]
        weights = attention(*args, **{**kwargs, "return_weights": True})[1][0].mean(0)
    names = [[tokenizer.decode([token]) for token in side] + ["</s>"] for side in ids]
    plots.attention(weights, names[0], names[1], path)
