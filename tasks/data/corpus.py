"""Parallel text as token ids: tokenised once into files that are mapped, not read, so that they may be larger than memory.

    SPLIT.source.tokens, .target.tokens      ids of all sentences, one after the other: uint16, or uint32 for a large vocabulary
    SPLIT.source.offsets, .target.offsets    where each sentence starts, and where the last one ends: int64
    source.tokenizer.json, target...         what wrote the ids and reads them
    meta.json                                types, what the pairs are, and for every split its fingerprint and how many pairs
                                             were kept and skipped

The folder appears whole or not at all. Ids are stored without the tokens that begin and end a sentence, which `collate` adds.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.data import DataError, fingerprint
from tasks.data.batching import Example
from tasks.data.text import Counts, nonempty, sample
from tasks.data.text_files import Pair
from tasks.data.tokenizer import TextTokenizer, load_tokenizer
from zoo import files

SIDES = ("source", "target")
FORMAT = "zooproof parallel corpus 1"
CHUNK = 4096
"""So many pairs are in memory at a time."""


def tokenised(
    pairs: Iterable[Pair], source: TextTokenizer, target: TextTokenizer, longest: int, counts: Counts, form: str = "none"
) -> Iterator[Example]:
    """Examples of at most `longest` tokens a side, `eos` included; what is empty or longer is skipped and counted.

    form: Unicode normal form that the texts get, as `text.clean` has it.
    """
    rest = nonempty(pairs, counts, form)
    while chunk := list(islice(rest, CHUNK)):
        sides = source.encode_batch([pair[0] for pair in chunk]), target.encode_batch([pair[1] for pair in chunk])
        for example in zip(*sides, strict=True):
            if max(map(len, example)) < longest:
                counts.kept += 1
                yield example
            else:
                counts.long += 1


# -------------------------------------------------------------------------------------------------------- prepared folders


def prepare(
    folder: str | Path, splits: Mapping[str, Iterable[Pair]], source: TextTokenizer, target: TextTokenizer, longest: int = 256,
    form: str = "none", about: Mapping[str, Any] | None = None,
) -> dict[str, Counts]:  # fmt: skip
    """Tokenise the pairs of every split into a new folder, a few thousand at a time.

    form:  Unicode normal form that the texts get. about: what else meta.json shall tell, such as the languages.
    Errors: `DataError` if the folder exists already, or if no pair of a split is left; those of the pairs' own readers.
    """
    folder = Path(folder)
    if folder.exists():
        raise DataError(f"{folder} exists already: give another folder, or remove it to prepare it anew")
    folder.parent.mkdir(parents=True, exist_ok=True)
    for part in folder.parent.glob(f".{folder.name}.*{files.PART}"):  # of a prepare that was killed
        shutil.rmtree(part)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=files.PART, dir=folder.parent))
    try:
        counts, fingerprints = {}, {}
        for split, pairs in splits.items():
            counts[split] = Counts()
            examples = tokenised(pairs, source, target, longest, counts[split], form)
            fingerprints[split] = fingerprint(write_split(part / split, examples, (source, target)))
            if not counts[split].kept:
                raise DataError(f"no pairs are left for {split}: {counts[split]}")
        source.save(part / "source.tokenizer.json")
        target.save(part / "target.tokenizer.json")
        types = {side: token_type(tokenizer).name for side, tokenizer in zip(SIDES, (source, target), strict=True)}
        meta = {"format": FORMAT, "types": types, "longest": longest, "splits": {k: asdict(v) for k, v in counts.items()}}
        meta |= {"fingerprints": fingerprints, "normalize": form, **(about or {})}
        files.write_json(part / "meta.json", meta)
        part.chmod(0o755)
        part.replace(folder)
        return counts
    finally:
        shutil.rmtree(part, ignore_errors=True)


def token_type(tokenizer: TextTokenizer) -> np.dtype[Any]:
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)


def write_split(stem: Path, examples: Iterator[Example], tokenizers: tuple[TextTokenizer, TextTokenizer]) -> Iterator[bytes]:
    """The four files of a split, written as what comes back is taken: all of it, of which one chunk is in memory at a time."""
    with contextlib.ExitStack() as stack:
        tokens, offsets = (
            [stack.enter_context(Path(f"{stem}.{side}.{kind}").open("wb")) for side in SIDES] for kind in ("tokens", "offsets")
        )
        ends = [0, 0]
        for file in offsets:
            file.write(np.zeros(1, np.int64).tobytes())
        while chunk := list(islice(examples, CHUNK)):
            for n, sentences in enumerate(zip(*chunk, strict=True)):
                ids = np.concatenate([np.asarray(ids, token_type(tokenizers[n])) for ids in sentences]).tobytes()
                ends_here = ends[n] + np.cumsum([len(ids) for ids in sentences], dtype=np.int64)
                tokens[n].write(ids)
                offsets[n].write(ends_here.tobytes())
                yield ids
                yield ends_here.tobytes()
                ends[n] = int(ends_here[-1])
        for file in (*tokens, *offsets):
            file.flush()
            os.fsync(file.fileno())


class Corpus(Sequence[Example]):
    """A split of a prepared folder: a sequence of examples, each read from disk when it is asked for.

    most, seed:  as many of them at most, as `text.sample` draws them.
    fingerprint: tells it from other splits, as it was written.
    Errors: `DataError` if the folder is none of `prepare`'s, lacks the split, or has a truncated file.
    """

    def __init__(self, folder: str | Path, split: str = "train", most: int | None = None, seed: int = 0) -> None:
        folder = Path(folder)
        meta = read_meta(folder)
        if split not in meta["splits"]:
            raise DataError(f"{folder} has no split {split}, only {', '.join(meta['splits'])}")
        told = meta.get("fingerprints", {})  # which folders of before lack
        self.fingerprint: str = told[split] if split in told else fingerprint([json.dumps(meta, sort_keys=True).encode()])
        self.counts = Counts(**meta["splits"][split])
        self.offsets = [mapped(folder / f"{split}.{side}.offsets", np.int64, self.counts.kept + 1) for side in SIDES]
        self.tokens = [
            mapped(folder / f"{split}.{side}.tokens", meta["types"][side], int(offsets[-1]))
            for side, offsets in zip(SIDES, self.offsets, strict=True)
        ]
        drawn = most is not None and most < self.counts.kept
        self.rows = np.asarray(sample(range(self.counts.kept), most or 0, seed)) if drawn else None

    def __len__(self) -> int:
        return self.counts.kept if self.rows is None else len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        """Source and target ids."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        index = index if self.rows is None else self.rows[index]
        source, target = (ids[start[index] : start[index + 1]] for ids, start in zip(self.tokens, self.offsets, strict=True))
        return source, target

    @property
    def lengths(self) -> Tensor:
        """(n, 2): the tokens of source and target, `eos` included."""
        lengths = torch.stack([torch.from_numpy(np.diff(offsets)) for offsets in self.offsets], 1) + 1
        return lengths if self.rows is None else lengths[torch.from_numpy(self.rows)]


def read_meta(folder: Path) -> dict[str, Any]:
    """meta.json of a prepared folder. Errors: `DataError` if it is none, or one of another version."""
    if not (folder / "meta.json").is_file():
        raise DataError(f"{folder} is no prepared folder: it has no meta.json")
    meta = files.read_json(folder / "meta.json")
    if meta.get("format") != FORMAT:
        raise DataError(f"{folder} is no prepared folder of this version: its format is {meta.get('format')!r}, not {FORMAT!r}")
    try:
        for counts in meta["splits"].values():
            Counts(**counts)
        for side in SIDES:
            np.dtype(meta["types"][side])
        told = (meta.get("source"), meta.get("target"), *meta.get("fingerprints", {}).values())
        if not all(isinstance(text, str | None) for text in told):
            raise TypeError(f"{told} must be texts")
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / 'meta.json'} is damaged, not what `prepare` wrote ({error})") from error
    return meta


def mapped(path: Path, dtype: Any, size: int) -> np.ndarray:
    expected = size * np.dtype(dtype).itemsize
    if not path.is_file() or path.stat().st_size != expected:
        raise DataError(f"{path} is missing or truncated: expected {expected} bytes")
    return np.memmap(path, dtype, "r") if size else np.zeros(0, dtype)


def prepared_tokenizers(folder: str | Path) -> tuple[TextTokenizer, TextTokenizer]:
    """Those of source and target that wrote a prepared folder."""
    source, target = (load_tokenizer(Path(folder) / f"{side}.tokenizer.json") for side in SIDES)
    return source, target
