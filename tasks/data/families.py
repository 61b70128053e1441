"""What the splits of a data set are called: one table for folders of pictures, folders of text, and sets of the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable

FAMILIES = {"train": ("train", "training"), "valid": ("val", "valid", "validation", "dev"), "test": ("test", "testing", "eval")}
"""Names of each split, in any case, also with a "set" or "data" at the end."""
START = re.compile(f"({'|'.join(name for family in FAMILIES.values() for name in family)})[-_ ]?(set|data)?(?![a-z])")


def role_of(name: str) -> str | None:
    """The split that has this name: train, valid or test."""
    base = re.sub(r"[-_ ]?(set|data)$", "", name.lower())
    return next((role for role, family in FAMILIES.items() if base in family), None)


def role_of_start(name: str) -> str | None:
    """The split whose name this one begins with, as test_2016 does."""
    found = START.match(name.lower())
    return role_of(found[1]) if found else None


def by_role(names: Iterable[str]) -> dict[str, str]:
    """Of each split the name it has among these; of several the one that comes first in its family."""
    found: dict[str, str] = {}
    for role, family in FAMILIES.items():
        own = [name for name in names if role_of(name) == role]
        own.sort(key=lambda name: next((n for n, base in enumerate(family) if name.lower() == base), len(family)))
        found |= {role: own[0]} if own else {}
    return found
