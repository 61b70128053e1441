"""Dates, times and intervals for `tasks.data.cldr`: how they are drawn, and the forms that Babel writes them in."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

from babel import Locale, dates

from tasks.data.cldr_values import Draw, Family, Form

LENGTHS = ("full", "long", "medium", "short")
YEAR_FORMS = ("yMMMEd", "yMMMMEEEEd", "yMMMd", "yMMMMd", "yMd", "yMEd")
RECENT = (1950, 2050)
"""The years that two digits can stand for, as in the short forms."""


def day(draw: Draw, first: int, last: int) -> dt.date:
    return dt.date(first, 1, 1) + dt.timedelta(draw.below((last - first) * 365))


def clock(draw: Draw, seconds: bool = False) -> dt.datetime:
    return dt.datetime(2000, 1, 1, draw.below(24), draw.below(60), draw.below(60) if seconds else 0)


def moment(draw: Draw) -> dt.datetime:
    return dt.datetime.combine(day(draw, *RECENT), clock(draw).time())


def two_days(draw: Draw) -> tuple[dt.date, dt.date]:
    first, most = day(draw, *RECENT), draw.pick((25, 300, 3000))
    return first, first + dt.timedelta(1 + draw.below(most))


def two_days_of_a_year(draw: Draw) -> tuple[dt.date, dt.date]:
    first, last = ordered(draw, 365)
    return dt.date(2001, 1, 1) + dt.timedelta(first), dt.date(2001, 1, 1) + dt.timedelta(last)


def two_times(draw: Draw) -> tuple[dt.datetime, dt.datetime]:
    first, last = ordered(draw, 24 * 60)
    return dt.datetime(2000, 1, 1) + dt.timedelta(minutes=first), dt.datetime(2000, 1, 1) + dt.timedelta(minutes=last)


def ordered(draw: Draw, limit: int) -> tuple[int, int]:
    """Two different numbers below the limit, the smaller one first."""
    first, step = draw.below(limit), 1 + draw.below(limit - 1)
    second = (first + step) % limit
    return min(first, second), max(first, second)


def date_form(name: str) -> Form:
    def write(value: dt.date, locale: Locale) -> str:
        pattern = locale.date_formats[name] if name in LENGTHS else locale.datetime_skeletons[name]
        if "yy" in pattern.pattern.replace("yyyy", "") and not RECENT[0] <= value.year < RECENT[1]:
            raise KeyError("a year of two digits")
        return pattern.apply(value, locale)

    return write


def time_form(name: str) -> Form:
    return lambda value, locale: dates.format_time(value, name, locale=locale)


def moment_form(date: Any) -> Form:
    def write(value: dt.datetime, locale: Locale) -> str:
        glue = str(dates.get_datetime_format(date, locale=locale)).replace("'", "")  # as dates.format_datetime does
        time = dates.format_time(value, "short", locale=locale)
        return glue.replace("{0}", time).replace("{1}", dates.format_date(value, date, locale=locale))

    return write


def interval_form(skeleton: str) -> Form:
    def write(value: tuple[dt.date, dt.date], locale: Locale) -> str:
        if skeleton not in locale.interval_formats:
            raise KeyError(skeleton)
        return dates.format_interval(*value, skeleton, fuzzy=False, locale=locale)

    return write


def date_families() -> Iterator[Family]:
    days = [date_form(name) for name in (*LENGTHS[:3], *YEAR_FORMS, "short")]
    yield Family("date", "date", lambda draw: day(draw, 1000, 3000), days)
    yield Family("date", "date", lambda draw: day(draw, *RECENT), days)
    yield Family("date", "month", lambda d: day(d, 1000, 3000).replace(day=1), [date_form(n) for n in ("yMMMM", "yMMM", "yM")])
    yield Family("date", "day", lambda d: day(d, 2000, 2001), [date_form(name) for name in ("MMMMd", "MMMd", "Md")])
    yield Family("date", "moment", moment, [moment_form(name) for name in LENGTHS])
    yield Family("time", "time", clock, [time_form("short")])
    yield Family("time", "time", lambda draw: clock(draw, seconds=True), [time_form("medium")])
    yield Family(
        "interval", "days", two_days, [interval_form(name) for name in ("yMMMMEEEEd", "yMMMMd", "yMMMEd", "yMMMd", "yMd")]
    )
    yield Family("interval", "days of a year", two_days_of_a_year, [interval_form("MMMd"), interval_form("Md")])
    yield Family("interval", "times", two_times, [interval_form("Hm"), interval_form("hm")])
