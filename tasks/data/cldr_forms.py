"""What `tasks.data.cldr` draws and in which forms it is written, all of them by Babel's own formatters."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import partial
from typing import Any

from babel import Locale, dates, lists, localedata, numbers, units

from tasks.data.cldr_dates import date_families
from tasks.data.cldr_values import Draw, Family, Form


def families(source: Locale, target: Locale) -> Iterator[Family]:
    yield from date_families()
    yield from duration_families()
    yield from number_families()
    yield from name_families(source, target)


# -------------------------------------------------------------------------------------------------------------- durations

SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800, "month": 2_592_000, "year": 31_536_000}
MOST = {"second": 59, "minute": 59, "hour": 23, "day": 6, "week": 4, "month": 11, "year": 99}
DURATIONS = ("year", "month", "week", "day", "hour", "minute", "second", "year month", "week day", "day hour", "hour minute",
             "minute second", "day hour minute", "hour minute second")  # fmt: skip
COUNTS = (1, 2, 3, 5, 8, 11, 20, 21, 40, 100)
"""Whole numbers of every kind of plural."""
STYLES = {"long": "unit", "short": "unit-short", "narrow": "unit-narrow"}


def unit_form(unit: str, length: Any) -> Form:
    def write(value: Decimal | int, locale: Locale) -> str:
        text = units.format_unit(value, unit, length, locale=locale)
        if unit in text:  # Babel's last resort
            raise KeyError(unit)
        return text

    return write


def duration_form(names: Sequence[str], length: str) -> Form:
    parts = [unit_form(f"duration-{name}", length) for name in names]
    style: Any = STYLES[length]

    def write(value: tuple[int, ...], locale: Locale) -> str:
        return lists.format_list([part(n, locale) for part, n in zip(parts, value, strict=True)], style, locale)

    return write


def relative_form(unit: str, length: Any) -> Form:
    def write(value: int, locale: Locale) -> str:
        delta = dt.timedelta(seconds=value * SECONDS[unit])
        return dates.format_timedelta(delta, threshold=1, add_direction=True, format=length, locale=locale)

    return write


def duration_families() -> Iterator[Family]:
    for words in DURATIONS:
        names = words.split()
        most = [MOST[name] if n or name == "year" else 999 for n, name in enumerate(names)]
        yield Family(
            "duration", words, lambda d, most=most: tuple(1 + d.below(m) for m in most),
            [duration_form(names, length) for length in STYLES], lambda value: len(value) == 1 and value[0] < 10,
            [(n,) * len(names) for n in COUNTS],
        )  # fmt: skip
    for unit, most in MOST.items():
        yield Family(
            "duration", f"relative {unit}", lambda d, most=most: (1 + d.below(most)) * d.pick((1, -1)),
            [relative_form(unit, length) for length in STYLES], lambda value: abs(value) < 10,
            [n for n in COUNTS if n <= most],
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------- quantities and currencies

UNITS = {
    "length": "millimeter centimeter meter kilometer inch foot yard mile nautical-mile light-year",
    "area": "square-centimeter square-meter hectare square-kilometer acre",
    "volume": "milliliter liter cubic-meter gallon tablespoon",
    "mass": "milligram gram kilogram tonne ounce pound",
    "temperature": "celsius fahrenheit kelvin",
    "speed": "kilometer-per-hour meter-per-second mile-per-hour knot",
    "energy": "kilojoule kilocalorie kilowatt-hour",
    "power": "watt kilowatt megawatt horsepower",
    "electric": "volt ampere ohm",
    "frequency": "hertz megahertz gigahertz",
    "pressure": "hectopascal bar",
    "digital": "bit byte kilobyte megabyte gigabyte terabyte",
    "angle": "degree",
    "consumption": "liter-per-100-kilometer",
    "graphics": "pixel megapixel",
}


def amount(draw: Draw, places: int = 2) -> Decimal:
    """Up to 20, 100, 1,000 or 100,000; half of them whole."""
    size, places = draw.pick((20, 100, 1000, 100_000)), draw.pick((0, 0, min(places, 1), places))
    return Decimal(draw.below(size * 10**places)) / 10**places


def small(value: Decimal) -> bool:
    return abs(value) < 10 and value == int(value)


def currency_form(code: str, kind: Any) -> Form:
    def write(value: Decimal, locale: Locale) -> str:
        if code not in locale.currencies:
            raise KeyError(code)
        return numbers.format_currency(value, code, locale=locale, format_type=kind)

    return write


def number_families() -> Iterator[Family]:
    for unit in (f"{field}-{name}" for field, names in UNITS.items() for name in names.split()):
        signed = unit in ("temperature-celsius", "temperature-fahrenheit")
        draw = (lambda d: amount(d, 1) * d.pick((1, -1)) + 0) if signed else amount  # + 0 makes -0 a 0
        probes = [Decimal(n) for n in (*COUNTS, "0.2", "0.4")]  # Hebrew writes both as one mile
        yield Family("quantity", unit, draw, [unit_form(unit, length) for length in STYLES], small, probes)
    tender = {
        code
        for place in Locale("en").territories
        if len(place) == 2
        for code in numbers.get_territory_currencies(place, dt.date(2024, 1, 1))
    }
    for code in sorted(tender):
        draw = partial(amount, places=numbers.get_currency_precision(code))
        yield Family("currency", code, draw, [currency_form(code, kind) for kind in ("name", "standard")], small)


# -------------------------------------------------------------------------------------------------------------------- names


NO_PLACES = ("EZ", "QO", "XA", "XB", "ZZ")
"""Groups and pseudo-locales that CLDR keeps among the territories."""
KNOWN = (x for x in sorted(localedata.locale_identifiers()) if len(x) == 5 and x[2] == "_" and x[3:].isupper())
LOCALES = {x: locale for x in KNOWN if (locale := Locale.parse(x)).script is None}
"""Languages as spoken in a territory, such as de_AT, where CLDR names no script with them."""


def name_form(table: str) -> Form:
    return lambda code, locale: getattr(locale, table)[code]


def list_form(table: str, style: Any) -> Form:
    return lambda codes, locale: lists.format_list([getattr(locale, table)[code] for code in codes], style, locale)


def display_form(identifier: str, locale: Locale) -> str:
    return LOCALES[identifier].get_display_name(locale) or ""


def several(draw: Draw, codes: Sequence[str]) -> tuple[str, ...]:
    """Two or three different ones."""
    left = list(codes)
    return tuple(left.pop(draw.below(len(left))) for _ in range(2 + draw.below(2)))


def name_families(source: Locale, target: Locale) -> Iterator[Family]:
    """Territories and languages with codes of two letters, as far as both locales name them, alone and combined."""
    codes: dict[str, list[str]] = {}
    taken: set[str] = set()  # German Fidschi is a territory and a language, Fiji and Fijian
    for table in ("territories", "languages"):
        theirs, ours = getattr(source, table), getattr(target, table)
        named = {theirs[code]: code for code in theirs if len(code) == 2 and code.isalpha() and code in ours}
        codes[table] = sorted(code for name, code in named.items() if name not in taken and code not in NO_PLACES)
        taken |= set(named)
        if len(codes[table]) > 2:
            yield Family("name", table, lambda d, c=codes[table]: d.pick(c), [name_form(table)], lambda value: True)
            forms = [list_form(table, style) for style in ("standard", "or")]
            yield Family("name", f"several {table}", lambda d, c=codes[table]: several(d, c), forms)
    known = [x for x in LOCALES if x[:2] in codes["languages"] and x[3:] in codes["territories"]]
    if known:
        yield Family("name", "locales", lambda draw: draw.pick(known), [display_form])
