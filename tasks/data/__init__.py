"""Data sets as tensors, and the random numbers of training as pure functions of where they are used."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

SPLITS = ("test", "valid", "train")
SHARE = 20
"""One value in so many is held out for test, and as many for valid."""


class DataError(ValueError):
    """Something about the data that its user can mend; the message is one line."""


def seed_of(*where: int | str) -> int:
    """A seed of 63 bits for a place such as ``("augment", seed, epoch)``; no two places share a stream."""
    return int.from_bytes(hashlib.blake2b(repr(where).encode(), digest_size=8).digest(), "big") >> 1


def generator_of(*where: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*where))


def spread(size: int, count: int) -> Tensor:
    """`count` of `size` places, evenly apart, or all of them."""
    return torch.arange(min(size, count)) * size // max(1, min(size, count))


def epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    """The order of the examples in an epoch (from 0): a permutation that only seed and epoch decide."""
    return torch.randperm(size, generator=generator_of("order", seed, epoch))


def split_of(number: int) -> str:
    """The split of what hashes to this number: a twentieth each for test and valid, the rest for train."""
    return SPLITS[min(number % SHARE, len(SPLITS) - 1)]


def fingerprint(parts: Iterable[bytes]) -> str:
    """16 digits that tell two data sets apart: other parts, or in another order, have others."""
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()
