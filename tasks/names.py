"""Names that fit beside their neighbours in a picture and can still be told apart."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, count


def plain(text: str) -> str:
    """The text on one line: control characters as their pictures (a newline is "␊"), what is no whole character as "�"."""
    return "".join(map(visible, text))


def visible(character: str) -> str:
    if ord(character) < 32:
        return chr(0x2400 + ord(character))
    return "�" if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") else character


def width(text: str) -> int:
    """The width of a text in columns: Chinese, Japanese, Korean characters and emoji take two, all others one."""
    return sum(map(columns, text))


def columns(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def head(text: str, limit: int) -> str:
    """The longest beginning of at most `limit` columns."""
    return text[: sum(taken <= limit for taken in accumulate(map(columns, text)))]


def tail(text: str, limit: int) -> str:
    """The longest end of at most `limit` columns."""
    return head(text[::-1], limit)[::-1]


def agreeing(text: str, other: str) -> int:
    """How many characters of two texts are the same, from their beginning."""
    return sum(accumulate((a == b for a, b in zip(text, other, strict=False)), min))


def shortened(names: Sequence[str], limit: int = 20) -> list[str]:
    """Every name in at most `limit` columns, on one line; names that differ stay different.

    A name that is too long loses its end; if others would look the same, its middle; then what comes before the place where it
    differs from the names most like it. What is left then gets a number.
    """
    texts = {name: plain(name) for name in names}
    ordered = sorted(set(texts.values()))
    places = {text: n for n, text in enumerate(ordered)}

    def in_full(text: str) -> str:
        return text

    def without_end(text: str) -> str:
        return f"{head(text, limit - 1)}…"

    def without_middle(text: str) -> str:
        return f"{head(text, limit - 1 - limit // 2)}…{tail(text, limit // 2)}"

    def from_difference(text: str) -> str:
        near = ordered[max(0, places[text] - 1) : places[text] + 2]
        rest = text[max((agreeing(text, other) for other in near if other != text), default=0) :]
        room = limit - 1 - width(start := head(text, limit // 4))
        return f"{start}…{rest if width(rest) <= room else head(rest, room - 1) + '…'}"

    found: dict[str, str] = {}
    for cut in (in_full, without_end, without_middle, from_difference):
        made = {name: cut(text) for name, text in texts.items() if name not in found}
        times = Counter([*made.values(), *found.values()])
        found |= {name: short for name, short in made.items() if times[short] == 1 and width(short) <= limit}
    taken, numbers = set(found.values()), count(1)
    for name, text in texts.items():
        if name not in found:
            made_up = (f"{head(text, limit - 1 - len(str(n)))}…{n}" for n in numbers)
            found[name] = next(short for short in made_up if short not in taken)
            taken.add(found[name])
    return [found[name] for name in names]


def short(name: str) -> str:
    """One name alone."""
    return shortened([name])[0]
