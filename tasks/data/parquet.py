"""Pictures in Parquet files, of a folder or of the Hugging Face hub: `datasets` streams them, row group by row group.

One pass over the column of labels, in each process, tells what each row group has; pictures come when they are asked for, each
group once while it is in use. So a batch is a function of its indices here too. No pictures are kept on disk.

The order of an epoch is arranged so that nobody reads what others need. It runs in streams: each takes its own stretch of the
row groups, which come in a drawn order. Batches take turns by `phases`, which parts workers from one another; a batch takes its
first rows from the first lane and its last ones from the last, which parts processes.
"""

from __future__ import annotations

import glob
import logging
import os
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from tasks.data import DataError, shards, spread
from tasks.data.families import by_role
from tasks.data.pictures import half_of_memory, in_threads
from tasks.data.shards import Found, Packed
from tasks.data.text_files import optional
from tasks.data.tree import printable
from zoo.files import first_line
from zoo.pretrained.preprocess import Preprocess

STREAMS = 8
"""Lanes, at most, and phases."""
ROOM = 2**31
"""Bytes of row groups that stay in memory, at most."""
READ = 1024
"""Rows that are asked for at a time."""
SAMPLED = 16
"""Row groups that tell mean and standard deviation, and more where they are too small."""
IMAGES = ("image", "img", "picture", "jpg", "jpeg", "png")
LABELS = ("label", "labels", "class", "cls", "target")
"""What columns are called that do not say of themselves what they hold."""


class Groups:
    """The contents of pictures (None where there is none) by number of the row group; the last ones stay."""

    def __init__(self, stream: Any, column: str, name: str) -> None:
        self.stream, self.column, self.name = stream, column, name
        self.kept: OrderedDict[int, Future[list[bytes | None]]] = OrderedDict()
        self.lock, self.sizes = threading.Lock(), {}

    def __getitem__(self, n: int) -> list[bytes | None]:
        """Errors: `DataError` if it cannot be read."""
        with self.lock:
            mine, found = n not in self.kept, self.kept.setdefault(n, Future())
            self.kept.move_to_end(n)
        if mine:
            try:
                found.set_result(self.read(n))
            except Exception as error:  # of many kinds: of files, of Parquet, of the network
                with self.lock:
                    del self.kept[n]
                found.set_exception(DataError(f"row group {n:,} of {self.name} cannot be read ({first_line(error)})"))
            self.forget()
        return found.result()

    def read(self, n: int) -> list[bytes | None]:
        """By `iter`, which reads all: a stream itself, in a worker of a loader, gives that worker's part of its rows alone."""
        rows = self.stream.shard(num_shards=self.stream.num_shards, index=n).iter(READ)
        found = [content for some in rows for content in some[self.column]]
        return [content["bytes"] if isinstance(content, dict) else content for content in found]

    def forget(self) -> None:
        """What was used longest ago goes, as long as all take more than `ROOM`, or a quarter of the memory."""
        worker = get_worker_info()
        room = min(ROOM, half_of_memory() // 2) // (worker.num_workers if worker else 1)
        with self.lock:
            done = [n for n, one in self.kept.items() if one.done()]
            self.sizes = {n: self.sizes.get(n) or sum(len(x or b"") for x in self.kept[n].result()) for n in done}
            total = sum(self.sizes.values())
            for n in done[:-1]:
                if total <= room:
                    break
                total -= self.sizes.pop(n)
                del self.kept[n]


@dataclass(frozen=True)
class InGroups(Packed):
    """where: row group, and row in there (n, 2)."""

    groups: Groups = field(default=None, compare=False)  # type: ignore

    @property
    def count(self) -> int:
        return len(self.where[:, 0].unique())

    @property
    def packs(self) -> str:
        return f"{self.count:,} row groups"

    def told(self) -> list[str]:
        processes = int(os.environ.get("WORLD_SIZE", 1))
        few = f"{self.count:,} row groups for {processes:,} processes, of which some read the same: write files of smaller ones"
        return [few] if self.count < processes else []

    def content(self, n: int) -> bytes:
        group, row = self.where[n].tolist()
        content = self.groups[group][row]
        if content is None:
            raise DataError(f"{self.paths[n]} has no bytes of a picture")
        return content

    def sample(self, count: int) -> Tensor:
        found = self.where[:, 0].unique()
        enough = max(SAMPLED, -(-count * len(found) // max(1, len(self))))
        rows = torch.isin(self.where[:, 0], found[spread(len(found), enough)]).nonzero()[:, 0]
        return rows[spread(len(rows), count)]

    def batches(self, batch_size: int, seed: int, epoch: int) -> Sequence[Tensor]:
        return order(self.where[:, 0], batch_size, (seed, epoch)).split(batch_size)

    def passed(self, batch_size: int) -> Sequence[Tensor]:
        return order(self.where[:, 0], batch_size).split(batch_size)


def order(group: Tensor, batch_size: int, draw: tuple[int, int] | None = None, window: int = shards.WINDOW) -> Tensor:
    """Each example's row group (n,), in order -> the order of a pass, a permutation.

    draw: seed and epoch (from 0) that decide it; without them nothing is drawn. window: rows, about, of the row groups that are
    in use at a time, and then as many again for their mixing.
    """
    n = len(group)
    most = max(1, window * len(group.unique()) // max(1, n))  # row groups in use
    lanes = min(STREAMS, most)
    phases = min(STREAMS, most // lanes)
    rows = shards.order(group, *draw, max(1, window // (lanes * phases))) if draw else torch.arange(n)
    at = torch.arange(n)
    batch, slot = at // batch_size, at % batch_size
    stream = batch % phases * lanes + slot * lanes // (n - batch * batch_size).clamp(max=batch_size)
    found = torch.empty_like(rows)
    found[stream.argsort(stable=True)] = rows
    return found


def library() -> Any:
    """`datasets`. Errors: `DataError` if it is not there, or too old."""
    datasets = optional("datasets")
    if not hasattr(datasets.IterableDataset, "reshard"):
        raise DataError(f"datasets {datasets.__version__} cannot read row groups: 5.2 or later is needed")
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what it logs as it fails, its exceptions say too
    return datasets


def find_hub(name: str, reader: Preprocess, columns: str) -> dict[str, Callable[[], Found]]:
    """Of hf:NAME or hf:NAME:CONFIG, or a folder in the place of NAME, the splits. Errors: `DataError`, also if not of Parquet."""
    path, _, config = name.partition(":")
    datasets, shown = library(), f"hf:{printable(name)}"
    try:
        builder = datasets.load_dataset_builder(path, config or None)
        files = getattr(builder.config, "data_files", None) or {}
    except Exception as error:  # of many kinds: no network, no such set, no such configuration
        raise DataError(f"{shown} could not be opened ({first_line(error)})") from error
    if builder.name != "parquet":
        raise DataError(f"{shown} is of {builder.name}, and of Parquet alone parts can be read: folder: and shards: take others")
    names = [str(split) for split in files]
    found = by_role(names) or ({"all": names[0]} if len(names) == 1 else {})
    if not found:
        raise DataError(f"{shown} has {', '.join(names)}, of which none is train, validation or test")
    opened = partial(datasets.load_dataset, path, config or None, streaming=True)
    return {
        role: lambda split=split, role=role: read(partial(opened, split=split), f"{shown}, {split}", role, reader, columns)
        for role, split in found.items()
    }


def read_files(paths: Sequence[str], reader: Preprocess, columns: str) -> Found:
    """Files as one split. Errors: `DataError` as `read` has them."""
    datasets = library()
    opened = partial(datasets.load_dataset, "parquet", data_files=[*map(glob.escape, paths)], split="train", streaming=True)
    first = os.path.basename(paths[0])
    return read(opened, printable(paths[0]) + (f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""), first, reader, columns)


def read(opened: Callable[..., Any], name: str, called: str, reader: Preprocess, columns: str) -> Found:
    """Labels only. opened: gives the stream of some columns. called: what its pictures are called by.

    Errors: `DataError` if it cannot be read, for a column that is missing or no class, and if there is nothing in it.
    """
    try:
        features = opened().features
        image, label = columns_of(features, columns, name)
        labels = opened(columns=[label]).reshard()
        pictures = opened(columns=[image]).decode(False).reshard()
        rows: list[list[str]] = [[] for _ in range(labels.num_shards)]
        names = getattr(features[label], "names", None)

        def labels_of(n: int) -> None:
            rows[n] = [class_of(row[label], names, name) for row in labels.shard(num_shards=len(rows), index=n)]

        in_threads(labels_of, len(rows), f"reading the labels of {name}")
    except DataError:
        raise
    except Exception as error:  # of many kinds: of files, of Parquet, of the network
        raise DataError(f"{name} cannot be read as Parquet ({first_line(error)})") from error
    if not any(rows):
        raise DataError(f"{name} has no rows")
    where = torch.tensor([(n, row) for n, group in enumerate(rows) for row in range(len(group))])
    paths = [f"{called}/{n:06}" for n in range(len(where))]
    return Found(InGroups(paths, reader, where, Groups(pictures, image, name)), [one for group in rows for one in group])


def columns_of(features: Any, asked: str, name: str) -> tuple[str, str]:
    """Which columns have pictures and classes. Errors: `DataError` with those that there are."""
    there = ", ".join(features)
    if asked:
        chosen = asked.split(",")
        if len(chosen) != 2:
            raise DataError(f"--columns must be two, of pictures and of classes, such as image,label, got {asked!r}")
        if missing := [column for column in chosen if column not in features]:
            raise DataError(f"{name} has no column {missing[0]!r}: it has {there}")
        return chosen[0], chosen[1]
    found = []
    for what, kind, names in (("pictures", "Image", IMAGES), ("classes", "ClassLabel", LABELS)):
        sure = [column for column, feature in features.items() if type(feature).__name__ == kind]
        some = sure or [column for column in features if column.lower() in names]
        if len(some) != 1:
            many = f"{len(some)} columns" if some else "no column"
            raise DataError(f"{name} has {many} of {what}: it has {there}; --columns image,label says which")
        found += some
    return found[0], found[1]


def class_of(value: Any, names: Sequence[str] | None, name: str) -> str:
    """A class by name; "" where there is none. Errors: `DataError` for what is neither text nor number, or has no name."""
    if value is None or (names and value == -1):
        return ""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{name}: a class must be a text or a whole number, got {str(value)[:40]!r}")
    if names and isinstance(value, int) and not 0 <= value < len(names):
        raise DataError(f"{name}: class {value} is none of {len(names)}")
    return unicodedata.normalize("NFC", names[value] if names and isinstance(value, int) else str(value).strip())
