"""What has no splits of its own is split here, 80 to 10 to 10, by what the examples are: a pure function of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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


def held_out(splits: Mapping[str, list[Any]], key: Callable[[Any], str]) -> tuple[dict[str, list[Any]], list[str]]:
    """Splits train, valid and test of texts of which some may be missing, and what is to be told of it.

    Where both are, a tenth of the training texts each is held out by the hash of `key`: like texts stay together. Where one is,
    the other serves as both. Errors: `DataError` for too few texts.
    """
    found, missing = dict(splits), [name for name in ("valid", "test") if not splits.get(name)]
    if not missing:
        return found, []
    if len(missing) == 1:
        other = "test" if missing == ["valid"] else "valid"
        return found | {missing[0]: found[other]}, [f"{missing[0]}: none given, so that {other} serves as both"]
    digests = {text: hashlib.blake2b(text.encode(errors="surrogatepass")).digest() for text in map(key, splits["train"])}
    ranks = {text: n for n, text in enumerate(sorted(digests, key=lambda text: digests[text]))}
    tenth = max(1, round(len(ranks) / 10))
    if len(ranks) < 3:
        raise DataError(f"three different texts or more are needed to hold some out, got {len(ranks)}: give --valid")
    found = {"train": [], "valid": [], "test": []}
    for text in splits["train"]:
        rank = ranks[key(text)]
        found["test" if rank < tenth else "valid" if rank < 2 * tenth else "train"].append(text)
    return found, ["valid and test are held out of the training texts, a tenth each"]
