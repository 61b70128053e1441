"""Parallel data for `tasks.translation`: where the pairs come from, the tokenizer that both languages share, and the examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tasks.data import DataError
from tasks.data.batching import Example
from tasks.data.cldr import cldr
from tasks.data.corpus import Corpus, prepare, prepared_tokenizers, tokenised
from tasks.data.text import Counts, Pair, find_splits, nonempty, read
from tasks.data.text_packages import pronunciations, read_hub
from tasks.data.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer

SPLITS = ("train", "valid", "test")
HELD_OUT = 1000
"""Pairs of CLDR, or words of the CMU dictionary, to validate and to test on."""
TRAINING_LINES = 1_000_000
"""A tokenizer is trained on so many pairs at most."""


@dataclass
class Held:
    """What is measured on: sources, and for each the translations that count as right."""

    sources: list[str]
    references: list[list[str]]

    @classmethod
    def of(cls, pairs: Iterable[Pair]) -> Held:
        found: dict[str, list[str]] = {}
        for source, target in pairs:
            found.setdefault(source, []).append(target)
        return cls(list(found), list(found.values()))

    def pairs(self) -> list[Pair]:
        return [(source, targets[0]) for source, targets in zip(self.sources, self.references, strict=True)]


@dataclass
class ParallelData:
    """Everything that a run needs. Token ids for training, text for measuring."""

    train: Sequence[Example]
    valid: Held
    test: Held
    tokenizer: TextTokenizer
    counts: dict[str, Counts] = field(default_factory=dict)


def spaced(pairs: Iterable[Pair]) -> Iterable[Pair]:
    """Words of the CMU dictionary letter by letter, so that one tokenizer of words reads letters and phonemes."""
    return ((" ".join(word), spoken) for word, spoken in pairs)


def sources(options: Any) -> dict[str, Callable[[], Iterable[Pair]]]:
    """For every split that the options name, a function that begins to read its pairs."""
    data, languages = options.data, (options.source, options.target)
    if options.train:
        given = {"train": options.train, "valid": options.valid, "test": options.test}
        return {split: lambda paths=paths: read(paths, *languages) for split, paths in given.items() if paths}
    if options.dataset_path:
        found = find_splits(options.dataset_path, *languages)
        return {split: lambda paths=paths: read(paths, *languages) for split, paths in found.items()}
    if data == "cldr":
        made = cldr(*languages)
        return {
            "train": lambda: islice(made.pairs(options.seed), options.pairs),
            "valid": lambda: made.distinct(HELD_OUT, options.seed, "valid"),
            "test": lambda: made.distinct(HELD_OUT, options.seed, "test"),
        }
    if data == "cmudict":

        def words(split: str) -> Iterable[Pair]:
            variants = pronunciations(split).items()
            return spaced((word, spoken) for word, many in variants for spoken in many)

        return {split: lambda split=split: words(split) for split in SPLITS}
    if data.startswith("hf:"):
        return {split: lambda split=split: read_hub(data[3:], split, *languages) for split in SPLITS}
    raise DataError(f"--data must be cldr, cmudict or hf:NAME, got {data!r}; files are given by --train or --dataset_path")


def load_parallel(options: Any) -> ParallelData:
    """The data that the options name, all of it in memory but for a prepared folder.

    Errors: `DataError` of one line, for whatever is wrong with files, languages and tokenizers.
    """
    if options.prepared:
        return load_prepared(Path(options.prepared))
    readers = sources(options)
    if "valid" not in readers:
        raise DataError("there is nothing to validate on: give --valid, or valid files in --dataset_path")
    tokenizer, counts = make_tokenizer(options, readers["train"]), Counts()
    train = list(tokenised(readers["train"](), tokenizer, tokenizer, options.max_length, counts))
    if not train:
        raise DataError(f"no pairs are left to train on: {counts}")
    found = {"train": counts, "valid": Counts(), "test": Counts()}
    held = {split: Held.of(fitting(readers[split](), tokenizer, options.max_length, found[split]))
            for split in ("valid", "test") if split in readers}  # fmt: skip
    return ParallelData(train, held["valid"], held.get("test", held["valid"]), tokenizer, found)


def fitting(pairs: Iterable[Pair], tokenizer: TextTokenizer, longest: int, counts: Counts) -> Iterable[Pair]:
    """Pairs of which both sides have fewer than `longest` tokens, as in `tokenised`."""
    for pair in nonempty(pairs, counts):
        fits = max(len(ids) for ids in tokenizer.encode_batch(pair)) < longest
        counts.kept, counts.long = counts.kept + fits, counts.long + (not fits)
        if fits:
            yield pair


def make_tokenizer(options: Any, reader: Callable[[], Iterable[Pair]]) -> TextTokenizer:
    """The given tokenizer, with a token for padding if it has none, or one that is trained on the pairs."""
    if options.tokenizer:
        return load_tokenizer(options.tokenizer).with_padding().require("bos", "eos")
    level = options.level or ("word" if options.data == "cmudict" and not options.train else "bpe")
    size = options.vocab_size or (1000 if options.data == "cldr" and not (options.train or options.dataset_path) else 8000)
    return train_tokenizer(chain.from_iterable(islice(reader(), TRAINING_LINES)), level, size)


def prepare_folder(options: Any, folder: Path) -> dict[str, Counts]:
    """Tokenise every split into a folder for --prepared."""
    readers = sources(options)
    tokenizer = make_tokenizer(options, readers["train"])
    return prepare(folder, {split: reader() for split, reader in readers.items()}, tokenizer, tokenizer, options.max_length)


def load_prepared(folder: Path) -> ParallelData:
    tokenizer, _ = prepared_tokenizers(folder)
    train, valid = Corpus(folder, "train"), Corpus(folder, "valid")
    try:
        test = Corpus(folder, "test")
    except DataError:
        test = valid
    held = [
        Held.of((tokenizer.decode(a), tokenizer.decode(b)) for a, b in (corpus[i] for i in range(len(corpus))))
        for corpus in (valid, test)
    ]
    return ParallelData(train, held[0], held[1], tokenizer, {"train": train.counts, "valid": valid.counts, "test": test.counts})
