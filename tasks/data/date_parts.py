"""Dates and times in many languages, and what each part of them is: data that everybody has who has the package Babel.

    Freitag, 5. März 2021 um 16:07      WEEKDAY Freitag, DAY 5, MONTH März, YEAR 2021, HOUR 16, MINUTE 07
    الجمعة، 5 مارس 2021 في 4:07 م        the same parts, and PERIOD م
    03/05/21                            MONTH DAY YEAR or DAY MONTH YEAR: nobody can tell, so that no model gets all of them

Unicode's CLDR knows the patterns. A text is a pure function of its number, for a given version of Babel; the hash of a text
decides whether it is for train, valid or test, so that no text of one is in another.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from tasks.data import split_of
from tasks.data.cldr_values import Draw
from tasks.data.spans import Span, runs
from tasks.data.tagged import Tagged, words_of
from tasks.data.text_files import optional

LOCALES = (
    "am", "ar", "bg", "bn", "ca", "cs", "da", "de", "el", "en", "en_GB", "es", "et", "eu", "fa", "fi", "fr", "gu", "he",
    "hi", "hr", "hu", "hy", "id", "is", "it", "ja", "ka", "km", "kn", "ko", "lo", "lt", "lv", "mk", "ml", "mr", "ms", "my",
    "nb", "nl", "pl", "pt", "ro", "ru", "si", "sk", "sl", "sq", "sr", "sv", "sw", "ta", "te", "th", "tr", "uk", "ur", "uz",
    "vi", "zh", "zu",
)  # fmt: skip
FIELDS = {
    **dict.fromkeys("yY", "YEAR"), **dict.fromkeys("ML", "MONTH"), "d": "DAY", **dict.fromkeys("Ec", "WEEKDAY"),
    **dict.fromkeys("abB", "PERIOD"), **dict.fromkeys("hHKk", "HOUR"), "m": "MINUTE", "s": "SECOND", "G": "ERA",
}  # fmt: skip
"""What the letters of CLDR's patterns stand for."""
DATES, TIMES = ("full", "long", "medium", "short"), ("medium", "short")
SIZE = 16_000


@lru_cache(1)
def date_parts(size: int = SIZE) -> dict[str, list[Tagged]]:
    """Different texts by split, of `size` drawn ones. Errors: `DataError` without Babel."""
    optional("babel")
    found: dict[str, list[Tagged]] = {"train": [], "valid": [], "test": []}
    known: set[str] = set()
    for n in range(size):
        text = example(n)
        if text.text not in known:
            digest = blake2b(text.text.encode(), digest_size=8).digest()
            found[split_of(int.from_bytes(digest, "big"))].append(text)
            known.add(text.text)
    return found


def example(number: int) -> Tagged:
    """A date, a time, or both, in one of `LOCALES`."""
    from babel import Locale

    draw = Draw("date parts", number)
    locale = Locale.parse(draw.pick(LOCALES))
    value = dt.datetime(1950 + draw.below(100), 1, 1) + dt.timedelta(draw.below(365), draw.below(86_400))
    kind, date, time = draw.below(8), draw.pick(DATES), draw.pick(TIMES)
    if kind == 0:
        found = [*fields(locale.time_formats[time].pattern, value, locale)]
    elif kind < 5:
        found = [*fields(locale.date_formats[date].pattern, value, locale)]
    else:
        found = []
        for part in cut(str(locale.datetime_formats[date])):
            pattern = {"{0}": locale.time_formats[time].pattern, "{1}": locale.date_formats[date].pattern}.get(part, part)
            found += fields(pattern, value, locale)
    return tagged(found, str(locale))


def cut(pattern: str) -> list[str]:
    """A pattern of date {1} and time {0}, such as "{1} 'um' {0}", at these."""
    return [part for part in pattern.replace("{", "\0{").replace("}", "}\0").split("\0") if part]


def fields(pattern: str, value: dt.datetime, locale: Any) -> Iterator[tuple[str, str]]:
    """Parts of the written text, and the label of each, "" for what stands between them."""
    from babel import dates

    written: Any = dates.DateTimeFormat(value, locale)
    parts: Any = dates.tokenize_pattern(pattern)
    for kind, part in parts:
        yield (str(part), "") if kind == "chars" else (written[part[0] * part[1]], FIELDS.get(part[0], ""))


def tagged(pieces: list[tuple[str, str]], place: str) -> Tagged:
    """Pieces of a text with their labels, as spans of its words; a word belongs to the piece in which it begins."""
    text = "".join(part for part, _ in pieces)
    owner = [n for n, (part, _) in enumerate(pieces) for _ in part]
    words = words_of(text)
    found = runs([f"{owner[start]}" if pieces[owner[start]][1] else "" for start, _ in words])
    return Tagged(text, words, tuple(Span(pieces[int(piece)][1], start, end) for piece, start, end in found), place)
