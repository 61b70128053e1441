"""Parallel data for `tasks.translation`: the tokenizer that both languages share, examples to train on, texts to measure on."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tasks.data import DataError, fingerprint
from tasks.data.batching import Example
from tasks.data.corpus import FORMER, Corpus, held_out, prepare, prepared_tokenizers, read_meta, tokenised
from tasks.data.sources import BUILT_IN, ORDER, built_in, readers, sources
from tasks.data.tables import Notes
from tasks.data.text import Counts, nonempty
from tasks.data.text_files import Pair
from tasks.data.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer

TRAINING_LINES = 1_000_000
"""A tokenizer is trained on so many pairs at most."""
PURPOSE = {"train": "train", "valid": "validate", "test": "test"}
FILES = "files"
"""What a prepared folder calls data that came from files."""
LACKING = {
    "valid": "valid: none given, so that the test set chooses the best model too, which flatters test_*",
    "test": "test: none given, so that the validation set is tested on",
}
"""What is to be said where one of the two serves as both."""


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
    notes: Notes = field(default_factory=dict)

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
    notes, form, counts = Notes(), options.normalize, Counts()
    found = readers(options, notes)
    tokenizer = tokenizer or make_tokenizer(options, found["train"])
    held = {split: load_held(options, tokenizer, split, found) for split in ORDER[1:] if split in found}  # sooner than train
    rows = tokenised(found["train"](), tokenizer, tokenizer.target, options.max_length, counts, form)
    train = [example for _, example in rows]
    if not train:
        raise DataError(f"no pairs are left to train on: {counts}")
    return with_held(train, held, tokenizer, counts, notes)


def with_held(
    train: Sequence[Example], held: dict[str, Held], tokenizer: TextTokenizer, counts: Counts, notes: Notes
) -> ParallelData:
    """All of it together: where valid or test is missing, the other serves as both, and that is told."""
    told = {"train": counts, **{split: one.counts for split, one in held.items()}}
    notes |= {split: words for split, words in LACKING.items() if split not in held}
    return ParallelData(train, held.get("valid") or held["test"], held.get("test"), tokenizer, told, notes)


def load_held(options: Any, tokenizer: TextTokenizer, split: str, found: dict[str, Callable[[], Iterable[Pair]]]) -> Held:
    """What the options name to validate or to test on."""
    fits, together = fitting(tokenizer, options.max_length), built_in(options)
    return Held.of(found[split](), fits, together, options.normalize).require_some(PURPOSE[split])


def load_test(options: Any, tokenizer: TextTokenizer, notes: Notes) -> Held:
    """What the options name to test on, else to validate on, which `notes` then tell."""
    if options.prepared:
        data = load_prepared(options)
        notes |= {about: note for about, note in data.notes.items() if about != "valid"}
        return data.test or data.valid
    found = sources(options, notes)
    if not found.keys() & {"valid", "test"}:
        raise DataError("there is nothing to test on: give --test")
    notes |= {} if "test" in found else {"test": LACKING["test"]}
    return load_held(options, tokenizer, "test" if "test" in found else "valid", found)


def make_tokenizer(options: Any, reader: Callable[[], Iterable[Pair]]) -> TextTokenizer:
    """The given tokenizer, with a token for padding if it has none, or one that is trained on the pairs."""
    if options.tokenizer:
        return load_tokenizer(options.tokenizer).with_padding().require("bos", "eos")
    level = options.level or ("word" if options.data == "cmudict" and not options.train else "bpe")
    size = options.vocab_size or (1000 if options.data == "cldr" and not (options.train or options.dataset_path) else 8000)
    pairs = islice(nonempty(reader(), Counts(), options.normalize), TRAINING_LINES)
    return train_tokenizer(chain.from_iterable(pairs), level, size)


def prepare_folder(options: Any, folder: Path, notes: Notes) -> dict[str, Counts]:
    """Write every split into a folder for --prepared."""
    found = readers(options, notes)
    tokenizer = make_tokenizer(options, found["train"])
    pairs, about = {split: reader() for split, reader in found.items()}, {"source": options.source, "target": options.target}
    about["data"] = FILES if options.train or options.dataset_path else options.data
    return prepare(folder, pairs, tokenizer, tokenizer.target, options.max_length, options.normalize, about)


def prepared_from(meta: Mapping[str, Any], given: str) -> str:
    """What the data of a prepared folder was, as --data says it, or `FILES`; older folders leave it to --data."""
    return meta.get("data") or (given if given == "cmudict" else FILES)


def load_prepared(options: Any, tokenizer: TextTokenizer | None = None) -> ParallelData:
    """A folder that `prepare` has left. Errors: `DataError` if a model's tokenizer did not write it."""
    folder = Path(options.prepared)
    meta = read_meta(folder)
    own, _ = prepared_tokenizers(folder)
    if tokenizer is not None and tokenizer.fingerprint != own.fingerprint:
        raise DataError(f"{folder} was prepared with another tokenizer than the model's: prepare it with --tokenizer of that")
    train = Corpus(folder, "train", options.max_examples, options.seed)
    held, together = {}, prepared_from(meta, options.data) in BUILT_IN
    for split in (split for split in ORDER[1:] if split in meta["splits"]):
        held[split] = Held.of(held_out(folder, split), together=together).require_some(PURPOSE[split])
        held[split].counts = Counts(**meta["splits"][split])
    if not held:
        raise DataError(f"{folder} has nothing to validate on, only {', '.join(meta['splits'])}")
    older = f"{folder} is of an older version: what is measured on is what its tokens say; prepare it again to have the texts"
    notes = {str(folder): older} if meta["format"] == FORMER else {}
    return with_held(train, held, tokenizer or own.require("bos", "eos"), train.counts, notes)
