"""What has no splits of its own is split here, 80 to 10 to 10, by what the examples are: a pure function of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from tasks.data import DataError

HELD_OUT = ("test", "valid")


def split_80_10_10(contents: Sequence[bytes], labels: Sequence[int], classes: Sequence[str], where: str) -> list[str]:
    """The split of each example: of every class a tenth is for test, a tenth for valid, the least of each is one.

    contents: what tells the examples apart; copies have the same, and stay in one split. The order of their hashes decides.
    Errors:  `DataError` if a class has fewer than three different examples.
    """
    digests = [hashlib.blake2b(content, digest_size=16).digest() for content in contents]
    by_class: list[Counter[bytes]] = [Counter() for _ in classes]
    for digest, label in zip(digests, labels, strict=True):
        by_class[label][digest] += 1
    found: dict[bytes, str] = {}
    for copies in by_class:
        counts = Counter(dict.fromkeys(("train", *HELD_OUT), 0))
        for digest in copies.keys() & found.keys():  # of another class too
            counts[found[digest]] += copies[digest]
        target = max(1, round(copies.total() / 10))
        left = sorted(copies.keys() - found.keys())
        if left and not counts["train"]:  # many copies of one are rather learnt than measured
            largest = max(left, key=lambda digest: (copies[digest], digest))
            left.remove(largest)
            found[largest] = "train"
        for digest in left:
            size = copies[digest]
            roles = [role for role in HELD_OUT if not counts[role]] or [r for r in HELD_OUT if counts[r] + size <= target]
            found[digest] = role = (roles or ["train"])[0]
            counts[role] += size
    splits = [found[digest] for digest in digests]
    for label, copies in enumerate(by_class):
        if {found[digest] for digest in copies} != {"train", *HELD_OUT}:
            counts = ", ".join(f"{name} {len(copies)}" for name, copies in zip(classes, by_class, strict=True))
            raise DataError(f"{where} must have three different examples or more of each class to be split, got {counts}: "
                            f"of {classes[label]!r} too few")  # fmt: skip
    return splits
