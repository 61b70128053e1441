"""Parallel data for `tasks.translation`: where the pairs come from, the tokenizer that both languages share, and the examples."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tasks.data import DataError, fingerprint
from tasks.data.batching import Example
from tasks.data.cldr import cldr
from tasks.data.corpus import Corpus, prepare, prepared_tokenizers, read_meta, tokenised
from tasks.data.text import Counts, find_splits, nonempty, read, sample
from tasks.data.text_files import Pair
from tasks.data.text_packages import pronunciations, read_hub
from tasks.data.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer

SPLITS = ("train", "valid", "test")
HELD_OUT = 1000
"""Pairs of CLDR, or words of the CMU dictionary, to validate and to test on."""
TRAINING_LINES = 1_000_000
"""A tokenizer is trained on so many pairs at most."""
PURPOSE = {"train": "train", "valid": "validate", "test": "test"}


@dataclass
class Held:
    """What is measured on: sources, and for each the translations that count as right; what was skipped is counted."""

    sources: list[str]
    references: list[list[str]]
    counts: Counts = field(default_factory=Counts)

    @classmethod
    def of(
        cls,
        pairs: Iterable[Pair],
        fits: Callable[[Pair], bool] = lambda pair: True,
        together: bool = False,
        form: str = "none",
    ) -> Held:
        """The pairs, clean, but for those with an empty side, and those that do not fit. Every pair counts once.

        together: a source that comes again is the same one, with one more right translation.
        form:     Unicode normal form that the texts get.
        """
        held, places = cls([], []), dict[str, int]()
        for pair in nonempty(pairs, held.counts, form):
            if not fits(pair):
                held.counts.long += 1
                continue
            held.counts.kept += 1
            if together and pair[0] in places:
                held.references[places[pair[0]]].append(pair[1])
                continue
            places[pair[0]] = len(held.sources)
            held.sources.append(pair[0])
            held.references.append([pair[1]])
        return held

    def pairs(self) -> list[Pair]:
        return [(source, targets[0]) for source, targets in zip(self.sources, self.references, strict=True)]

    def require_some(self, what: str) -> Held:
        """Itself. Errors: `DataError` without any."""
        if not self.sources:
            raise DataError(f"no pairs are left to {what} on: {self.counts}")
        return self

    @property
    def fingerprint(self) -> str:
        rows = zip(self.sources, self.references, strict=True)
        return fingerprint("\n".join([source, *targets]).encode() for source, targets in rows)


@dataclass
class ParallelData:
    """Everything that a run needs. Token ids for training, text for measuring."""

    train: Sequence[Example]
    valid: Held
    test: Held | None
    """None where none was given."""
    tokenizer: TextTokenizer
    counts: dict[str, Counts] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What the data is: tokenizer, and of every split the number of pairs and a fingerprint."""
        train = self.train.fingerprint if isinstance(self.train, Corpus) else fingerprint_of(self.train)
        held = {"valid": self.valid} | ({} if self.test is None else {"test": self.test})
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "train": {"pairs": len(self.train), "fingerprint": train},
            **{split: {"pairs": found.counts.kept, "fingerprint": found.fingerprint} for split, found in held.items()},
        }


def fingerprint_of(examples: Iterable[Example]) -> str:
    return fingerprint(array("I", ids).tobytes() for example in examples for ids in example)


def spaced(pairs: Iterable[Pair]) -> Iterable[Pair]:
    """Words of the CMU dictionary letter by letter, so that one tokenizer of words reads letters and phonemes."""
    return ((" ".join(word), spoken) for word, spoken in pairs)


def sources(options: Any) -> dict[str, Callable[[], Iterable[Pair]]]:
    """For every split that the options name, a function that begins to read its pairs."""
    data, languages = options.data, (options.source, options.target)
    if options.train or options.dataset_path:
        given = {"train": options.train, "valid": options.valid, "test": options.test}
        found = given if options.train else find_splits(options.dataset_path, *languages) | {k: v for k, v in given.items() if v}
        return {split: lambda paths=paths: read(paths, *languages, options.columns) for split, paths in found.items() if paths}
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
        return {split: lambda split=split: read_hub(data[3:], split, *languages, options.columns) for split in SPLITS}
    raise DataError(f"--data must be cldr, cmudict or hf:NAME, got {data!r}; files are given by --train or --dataset_path")


def readers(options: Any) -> dict[str, Callable[[], Iterable[Pair]]]:
    """Those of `sources`, the training pairs no more than --max_examples, drawn once."""
    found = sources(options)
    if options.max_examples is not None:
        full = (pair for pair in found["train"]() if pair[0].strip() and pair[1].strip())
        drawn = sample(full, options.max_examples, options.seed)
        found["train"] = lambda: drawn
    return found


def fitting(tokenizer: TextTokenizer, longest: int) -> Callable[[Pair], bool]:
    """Whether both sides of a pair have fewer than `longest` tokens, as in `tokenised`."""
    return lambda pair: max(len(tokenizer.encode(pair[0])), len(tokenizer.target.encode(pair[1]))) < longest


def load_parallel(options: Any, tokenizer: TextTokenizer | None = None) -> ParallelData:
    """The data that the options name, all of it in memory but for a prepared folder.

    tokenizer: the one to use, by default what the options say.
    Errors: `DataError` of one line, for whatever is wrong with files, languages and tokenizers.
    """
    if options.prepared:
        return load_prepared(options, tokenizer)
    found, form, counts = readers(options), options.normalize, Counts()
    if "valid" not in found:
        raise DataError("there is nothing to validate on: give --valid, or valid files in --dataset_path")
    tokenizer = tokenizer or make_tokenizer(options, found["train"])
    held = {split: load_held(options, tokenizer, split, found) for split in SPLITS[1:] if split in found}  # sooner than train
    train = list(tokenised(found["train"](), tokenizer, tokenizer.target, options.max_length, counts, form))
    if not train:
        raise DataError(f"no pairs are left to train on: {counts}")
    told = {"train": counts, **{split: one.counts for split, one in held.items()}}
    return ParallelData(train, held["valid"], held.get("test"), tokenizer, told)


def load_held(options: Any, tokenizer: TextTokenizer, split: str, found: dict[str, Callable[[], Iterable[Pair]]]) -> Held:
    """What the options name to validate or to test on."""
    fits, together = fitting(tokenizer, options.max_length), built_in(options)
    return Held.of(found[split](), fits, together, options.normalize).require_some(PURPOSE[split])


def load_test(options: Any, tokenizer: TextTokenizer) -> Held:
    """What the options name to test on, else to validate on."""
    if options.prepared:
        found = load_prepared(options)
        return found.test or found.valid
    found = sources(options)
    if not found.keys() & {"valid", "test"}:
        raise DataError("there is nothing to test on: give --test")
    return load_held(options, tokenizer, "test" if "test" in found else "valid", found)


def built_in(options: Any) -> bool:
    """Whether the data is one of ours, in which a source has several right translations."""
    return options.data in ("cldr", "cmudict") and not (options.train or options.dataset_path)


def make_tokenizer(options: Any, reader: Callable[[], Iterable[Pair]]) -> TextTokenizer:
    """The given tokenizer, with a token for padding if it has none, or one that is trained on the pairs."""
    if options.tokenizer:
        return load_tokenizer(options.tokenizer).with_padding().require("bos", "eos")
    level = options.level or ("word" if options.data == "cmudict" and not options.train else "bpe")
    size = options.vocab_size or (1000 if options.data == "cldr" and not (options.train or options.dataset_path) else 8000)
    pairs = islice(nonempty(reader(), Counts(), options.normalize), TRAINING_LINES)
    return train_tokenizer(chain.from_iterable(pairs), level, size)


def prepare_folder(options: Any, folder: Path) -> dict[str, Counts]:
    """Tokenise every split into a folder for --prepared."""
    found = readers(options)
    tokenizer = make_tokenizer(options, found["train"])
    pairs, about = {split: reader() for split, reader in found.items()}, {"source": options.source, "target": options.target}
    return prepare(folder, pairs, tokenizer, tokenizer.target, options.max_length, options.normalize, about)


def load_prepared(options: Any, tokenizer: TextTokenizer | None = None) -> ParallelData:
    """A folder that `prepare` has left. Errors: `DataError` if a model's tokenizer did not write it."""
    folder = Path(options.prepared)
    splits = read_meta(folder)["splits"]
    own, other = prepared_tokenizers(folder)
    if tokenizer is not None and tokenizer.fingerprint != own.fingerprint:
        raise DataError(f"{folder} was prepared with another tokenizer than the model's: prepare it with --tokenizer of that")
    train = Corpus(folder, "train", options.max_examples, options.seed)
    held, together = {}, options.data == "cmudict"
    for split in (split for split in SPLITS[1:] if split == "valid" or split in splits):
        corpus = Corpus(folder, split)
        pairs = ((own.decode(corpus[n][0]), other.decode(corpus[n][1])) for n in range(len(corpus)))
        held[split] = Held.of(pairs, together=together).require_some(PURPOSE[split])
        held[split].counts = corpus.counts
    counts = {"train": train.counts, **{split: one.counts for split, one in held.items()}}
    return ParallelData(train, held["valid"], held.get("test"), tokenizer or own.require("bos", "eos"), counts)
