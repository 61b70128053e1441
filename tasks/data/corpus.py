"""Parallel text, prepared once: to train on as token ids, in files that are mapped, not read, so that they may be larger than
memory; to measure on as the texts that they are.

    train.source.tokens, .target.tokens      ids of all sentences, one after the other: uint16, or uint32 for a large vocabulary
    train.source.offsets, .target.offsets    where each sentence starts, and where the last one ends: int64
    valid.jsonl, test.jsonl                  a line a pair, {"source": .., "target": ..}, clean
    source.tokenizer.json, target...         what wrote the ids and reads them
    meta.json                                types, what the pairs are, and for every split its fingerprint and how many pairs
                                             were kept and skipped

The folder appears whole or not at all. Ids are stored without the tokens that begin and end a sentence, which `collate` adds.
An older form of the folder has ids of all splits, and no texts.
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
from tasks.data.tables import read_jsonl
from tasks.data.text import Counts, nonempty, sample
from tasks.data.text_files import Pair, where
from tasks.data.tokenizer import TextTokenizer, load_tokenizer
from zoo import files

SIDES = ("source", "target")
FORMAT, FORMER = "zooproof parallel corpus 2", "zooproof parallel corpus 1"
CHUNK = 4096
"""So many pairs are in memory at a time."""


def tokenised(
    pairs: Iterable[Pair], source: TextTokenizer, target: TextTokenizer, longest: int, counts: Counts, form: str = "none"
) -> Iterator[tuple[Pair, Example]]:
    """Pairs, clean, and their ids, of at most `longest` tokens a side, `eos` included; others are skipped and counted.

    form: Unicode normal form that the texts get, as `text.clean` has it.
    """
    rest = nonempty(pairs, counts, form)
    while chunk := list(islice(rest, CHUNK)):
        sides = source.encode_batch([pair[0] for pair in chunk]), target.encode_batch([pair[1] for pair in chunk])
        for pair, example in zip(chunk, zip(*sides, strict=True), strict=True):
            size = max(map(len, example)) + 1
            if size > longest:
                counts.long += 1
                continue
            counts.kept += 1
            if size > counts.longest:
                counts.longest, counts.where = size, where(pair)
            yield pair, example


# -------------------------------------------------------------------------------------------------------- prepared folders


def prepare(
    folder: str | Path, splits: Mapping[str, Iterable[Pair]], source: TextTokenizer, target: TextTokenizer, longest: int = 256,
    form: str = "none", about: Mapping[str, Any] | None = None,
) -> dict[str, Counts]:  # fmt: skip
    """Write the pairs of every split into a new folder, a few thousand at a time: train as tokens, others as texts.

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
            rows = tokenised(pairs, source, target, longest, counts[split], form)
            if split == "train":
                parts = write_tokens(part / split, (example for _, example in rows), (source, target))
            else:
                parts = write_texts(part / f"{split}.jsonl", (pair for pair, _ in rows))
            fingerprints[split] = fingerprint(parts)
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


def write_tokens(stem: Path, examples: Iterator[Example], tokenizers: tuple[TextTokenizer, TextTokenizer]) -> Iterator[bytes]:
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


def write_texts(path: Path, pairs: Iterable[Pair]) -> Iterator[bytes]:
    """The lines of a file, written as they are taken: all of them."""
    with path.open("wb") as file:
        for pair in pairs:
            line = f"{json.dumps(dict(zip(SIDES, pair, strict=True)), ensure_ascii=False)}\n".encode()
            file.write(line)
            yield line
        file.flush()
        os.fsync(file.fileno())


class Corpus(Sequence[Example]):
    """The tokens of a split of a prepared folder: a sequence of examples, each read from disk when it is asked for.

    most, seed:  as many of them at most, as `text.sample` draws them.
    fingerprint: tells it from other splits, as it was written.
    Errors: `DataError` if the folder is none of `prepare`'s, lacks the split, or has a truncated file.
    """

    def __init__(self, folder: str | Path, split: str = "train", most: int | None = None, seed: int = 0) -> None:
        folder = Path(folder)
        meta = read_meta(folder, split)
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


def held_out(folder: Path, split: str) -> Iterator[Pair]:
    """The texts of a split, as they were given but for cleaning; of an older folder what its tokens say.

    Errors: `DataError` for a truncated file, and where tokens do not say it: an older folder with words unknown to its tokenizer.
    """
    meta = read_meta(folder, split)
    if meta["format"] == FORMAT:
        path, expected = folder / f"{split}.jsonl", meta["splits"][split]["kept"]
        found = list(read_jsonl(path, None, None)) if path.is_file() else []
        if len(found) != expected:
            raise DataError(f"{path} is missing or truncated: expected {expected} pairs, got {len(found)}")
        yield from found
        return
    tokenizers = prepared_tokenizers(folder)
    for example in Corpus(folder, split):
        source, target = (known(ids.tolist(), side, folder) for ids, side in zip(example, tokenizers, strict=True))
        yield source, target


def known(ids: list[int], tokenizer: TextTokenizer, folder: Path) -> str:
    """The text of the ids. Errors: `DataError` if some stand for unknown words."""
    if tokenizer.special.get("unk") in ids:
        raise DataError(f"{folder} is of an older version, which kept no texts to measure on, and its tokens do not tell them: "
                        "some words are unknown to its tokenizer; prepare it again")  # fmt: skip
    return tokenizer.decode(ids)


def read_meta(folder: Path, split: str = "train") -> dict[str, Any]:
    """meta.json of a prepared folder. Errors: `DataError` if it is none, one of another version, or one that lacks the split."""
    if not (folder / "meta.json").is_file():
        raise DataError(f"{folder} is no prepared folder: it has no meta.json")
    meta = files.read_json(folder / "meta.json")
    if meta.get("format") not in (FORMAT, FORMER):
        raise DataError(f"{folder} is no prepared folder of this version: its format is {meta.get('format')!r}, not {FORMAT!r}")
    try:
        for counts in meta["splits"].values():
            Counts(**counts)
        for side in SIDES:
            np.dtype(meta["types"][side])
        told = (*(meta.get(name) for name in ("data", *SIDES)), *meta.get("fingerprints", {}).values())
        if not all(isinstance(text, str | None) for text in told):
            raise TypeError(f"{told} must be texts")
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / 'meta.json'} is damaged, not what `prepare` wrote ({error})") from error
    if split not in meta["splits"]:
        raise DataError(f"{folder} has no split {split}, only {', '.join(meta['splits'])}")
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
