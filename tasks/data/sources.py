"""Where the pairs of `tasks.translation` come from: files, CLDR, the CMU dictionary, or the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any

from tasks.data import DataError
from tasks.data.cldr import cldr
from tasks.data.tables import Notes
from tasks.data.text import find_splits, read, sample
from tasks.data.text_files import Pair
from tasks.data.text_packages import pronunciations, read_hub

ORDER = ("train", "valid", "test")
HELD_OUT_PAIRS = 1000
"""Pairs of CLDR, or words of the CMU dictionary, to validate and to test on."""
BUILT_IN = ("cldr", "cmudict")
"""Our own data, in which a source has several right translations."""
Reader = Callable[[], Iterable[Pair]]
"""Begins to read."""


def built_in(options: Any) -> bool:
    return options.data in BUILT_IN and not (options.train or options.dataset_path)


def spaced(pairs: Iterable[Pair]) -> Iterable[Pair]:
    """Words of the CMU dictionary letter by letter, so that one tokenizer of words reads letters and phonemes."""
    return ((" ".join(word), spoken) for word, spoken in pairs)


def sources(options: Any, notes: Notes) -> dict[str, Reader]:
    """For every split that the options name, a function that begins to read its pairs; `notes` get what is to be told of them."""
    data, languages = options.data, (options.source, options.target)
    if options.train or options.dataset_path:
        given = {"train": options.train, "valid": options.valid, "test": options.test}
        found = given if options.train else find_splits(options.dataset_path, *languages) | {k: v for k, v in given.items() if v}
        return {split: partial(read, paths, *languages, options.columns, notes) for split, paths in found.items() if paths}
    if data == "cldr":
        made = cldr(*languages)
        return {
            "train": lambda: islice(made.pairs(options.seed), options.pairs),
            "valid": lambda: made.distinct(HELD_OUT_PAIRS, options.seed, "valid"),
            "test": lambda: made.distinct(HELD_OUT_PAIRS, options.seed, "test"),
        }
    if data == "cmudict":

        def words(split: str) -> Iterable[Pair]:
            variants = pronunciations(split).items()
            return spaced((word, spoken) for word, many in variants for spoken in many)

        return {split: lambda split=split: words(split) for split in ORDER}
    if data.startswith("hf:"):
        return read_hub(data[3:], *languages, options.columns)
    raise DataError(f"--data must be cldr, cmudict or hf:NAME, got {data!r}; files are given by --train or --dataset_path")


def readers(options: Any, notes: Notes) -> dict[str, Reader]:
    """Those of `sources`, the training pairs no more than --max_examples, drawn once.

    Errors: `DataError` where nothing is held out.
    """
    found = sources(options, notes)
    if not found.keys() & {"valid", "test"}:
        raise DataError("there is nothing to validate on: give --valid, or valid files in --dataset_path")
    if options.max_examples is not None:
        full = (pair for pair in found["train"]() if pair[0].strip() and pair[1].strip())
        drawn = sample(full, options.max_examples, options.seed)
        found["train"] = lambda: drawn
    return found
