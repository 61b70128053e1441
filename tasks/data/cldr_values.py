"""What `tasks.data.cldr` is made of: values that are drawn, the forms that they are written in, and the split that each is in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.data import split_of

Form = Callable[[Any, Any], str]
"""``form(value, locale)`` is the text; KeyError, ValueError or Babel's NotImplementedError if the locale lacks the form."""


class Draw:
    """Random numbers that are a pure function of a place: 512 bits of its hash, used up like the digits of a number."""

    def __init__(self, *where: int | str) -> None:
        self.left = int.from_bytes(hashlib.blake2b(repr(where).encode()).digest(), "big")

    def below(self, limit: int) -> int:
        self.left, rest = divmod(self.left, limit)
        return rest

    def pick(self, items: Sequence[Any]) -> Any:
        return items[self.below(len(items))]


@dataclass(frozen=True)
class Family:
    """Values of one sort and their forms, best first. A hash of `key` and value picks the split; `closed` values always train."""

    kind: str
    key: str
    draw: Callable[[Draw], Any]
    forms: Sequence[Form]
    closed: Callable[[Any], bool] = lambda value: False
    probes: Sequence[Any] = ()  # values at which other families may clash, besides some drawn ones

    def split(self, value: Any) -> str:
        if self.closed(value):
            return "train"
        digest = hashlib.blake2b(f"{self.key} {value!r}".encode(), digest_size=8).digest()
        return split_of(int.from_bytes(digest, "big"))

    def write(self, value: Any, chosen: int, source: Any, target: Any) -> tuple[str, str]:
        """The value in that form; if an earlier form has the same source ("May" is short and long), the target is that one's."""
        text = self.forms[chosen](value, source)
        form = next((form for form in self.forms[:chosen] if form(value, source) == text), self.forms[chosen])
        return text, form(value, target)
