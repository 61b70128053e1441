"""Batches prepared in other processes while this one computes, in the same order as without."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset


class Prepared(Dataset):
    """`make(item)` for each of the items, or the error that it ended with."""

    def __init__(self, make: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.make, self.items = make, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.make(self.items[index])
        except Exception as error:  # DataLoader would put its traceback into the message
            return error


def prepared(make: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterator[Any]:
    """`make(item)` of every item, in order. It must be a pure function: workers are copies of this process.

    workers: processes that compute ahead; 0 computes here, when an item is asked for.
    """
    if workers == 0:
        yield from map(make, items)
        return
    loader = DataLoader(
        Prepared(make, items), batch_size=None, num_workers=min(workers, max(1, len(items))), multiprocessing_context="fork"
    )
    for found in loader:
        if isinstance(found, Exception):
            raise found
        yield found
