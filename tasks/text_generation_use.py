"""Use a language model that `tasks.text_generation` has trained: write texts, and measure how well it foretells some."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.commands import checking_input
from tasks.continuing import Text
from tasks.language_modelling import Foretold, foretell, total
from tasks.options import UserError, data_of, option, restored
from tasks.saved import SavedOptions, find_run, placed
from tasks.tables import FILES, require_table, writing

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from tasks.data.documents import Document
    from tasks.data.tokenizer import TextTokenizer

PROGRAM = "tasks.text_generation"
TEXTS = "text files, folders of them, or .jsonl files with a text in each line"


@dataclass
class UseOptions(SavedOptions):
    program = PROGRAM

    def load(self) -> tuple[Any, TextTokenizer, int, Any]:
        """Model, tokenizer, context, and the context manager of --precision. Errors: `UserError` and `DataError`."""
        import zoo
        from tasks.data.tokenizer import load_tokenizer

        folder = find_run(self, "best.safetensors")
        tokenizer = load_tokenizer(folder / "tokenizer.json")
        model, precision = placed(zoo.load(folder / "best.safetensors"), self)
        tokenizer.require_vocab_size(model.embedding.table.num_embeddings)
        return model, tokenizer, int(model.config["context"]), precision


@dataclass
class GenerateOptions(UseOptions):
    title = "text"
    prompt: str = option("", "what to go on from; - reads it from standard input")
    max_new_tokens: int = option(300, "most tokens to write", least=1)
    min_new_tokens: int = option(0, "least tokens before the text may end", least=0)
    count: int = option(1, "so many texts, each of a seed of its own", least=1)
    greedy: bool = option(False, "the likeliest token each time, in place of drawing")
    temperature: float = option(0.8, "below 1 sharpens, above 1 flattens", above=0)
    top_k: int | None = option(None, "only so many of the likeliest tokens", least=1)
    top_p: float = option(0.95, "only the likeliest tokens that together are so likely", above=0, most=1)
    min_p: float = option(0.0, "only tokens so likely as compared with the likeliest", least=0, most=1)
    typical: float = option(1.0, "only tokens about as surprising as expected, that together are so likely", above=0, most=1)
    top_n_sigma: float | None = option(None, "only tokens within so many standard deviations of the largest logit", above=0)
    repetition_penalty: float = option(1.0, "divides the logits of tokens that were there", least=1)
    no_repeat_ngram: int | None = option(None, "so many tokens one after the other come only once", least=1)
    bad_words: list[str] = option((), "texts that never come", many=True)
    seed: int = option(0, "the same seed writes the same text", least=0)


@dataclass
class EvaluateOptions(UseOptions):
    title = "texts"
    test: list[str] = option((), f"{TEXTS} (default: the test texts of the run)", many=True, path=True)
    stride: int | None = option(None, "tokens that are foretold at a time (default: half of the context)", least=1)
    output: str = option("", f"bits per byte of each document: a {FILES}", path=True)


@checking_input()
def write(given: dict[str, Any]) -> None:
    """Stream texts to the terminal, each token as it comes."""
    options = GenerateOptions(**given)
    model, tokenizer, context, precision = options.load()
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    for n in range(options.count):
        sys.stdout.write(prompt)
        with precision:
            for piece in text_of(model, tokenizer, context, prompt, options, options.seed + n).pieces():
                sys.stdout.write(piece)
                sys.stdout.flush()
        print("" if options.count == 1 else "\n" + 80 * "-")


def text_of(model: Any, tokenizer: TextTokenizer, context: int, prompt: str, options: GenerateOptions, seed: int) -> Text:
    """What follows the prompt, as the options say."""
    from zoo.generation.sampling import Sampler

    filters = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "min_p", "typical", "top_n_sigma")}
    rules = {name: getattr(options, name) for name in ("min_new_tokens", "repetition_penalty", "no_repeat_ngram")}
    # a word may begin with a space, which is then part of its first token
    words = [ids for text in options.bad_words for ids in tokenizer.encode_batch([text, f" {text}"]) if ids]
    choose = None if options.greedy else Sampler(**filters, seed=seed)
    return Text(
        model, tokenizer, prompt, context=context, max_new_tokens=options.max_new_tokens, choose=choose,
        forbidden_sequences=words, **rules,
    )  # fmt: skip


@checking_input()
def evaluate(given: dict[str, Any]) -> None:
    from tasks.data import documents

    options = EvaluateOptions(**given)
    require_table("--output", options.output)
    model, tokenizer, context, precision = options.load()
    test = documents.read(options.test, []) if options.test else test_of(options)
    stride = options.stride or max(1, context // 2)
    found: list[Foretold] = []
    with precision, writing(options.output) as put:
        for document, one in zip(test, foretell(model, tokenizer, test, context=context, stride=stride), strict=True):
            found.append(one)
            put([{"document": document.name, "bits_per_byte": one.bits_per_byte, "perplexity": one.perplexity} | one._asdict()])
    whole = total(found)
    counts = f"{whole.tokens:,} tokens in {len(test):,} texts"
    print(f"bits per byte {whole.bits_per_byte:.4f}, perplexity {whole.perplexity:.3f}: {counts}")


def test_of(options: EvaluateOptions) -> list[Document]:
    """The test texts of a run. Errors: `UserError` if they are no longer what they were."""
    from tasks.data import documents
    from tasks.text_generation import TrainOptions
    from zoo.files import read_json

    folder = find_run(options, "best.safetensors")
    saved = read_json(folder / "options.json")
    run = restored(TrainOptions, saved, folder)
    data = documents.load(run.data, run.train, run.valid, run.test, run.normalize)
    if (data_of(saved) or {}).get("test") != data.identity()["test"]:
        raise UserError(f"{folder}: the test texts are not those of the run any more: give texts by --test")
    return data.test
