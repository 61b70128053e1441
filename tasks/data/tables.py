"""Pairs out of rows: TSV, CSV and JSONL, whose columns are the first two, or are chosen by number or by name."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tasks.data import DataError
from tasks.data.text_files import Pair, Placed, lines

Row = tuple[int, list[str]]
"""Number of a line, from 1, and what stands in its columns."""
Notes = dict[str, str]
"""What is to be told of the data, a line for each file or split that it is about: files are read several times."""


def columns_of(columns: str) -> list[str]:
    """The two columns that --columns names, or none. Errors: `DataError` for another number of them."""
    names = [name.strip() for name in columns.split(",")] if columns else []
    if names and (len(names) != 2 or not all(names) or names[0] == names[1] or "0" in names):
        raise DataError(f"--columns must be two numbers from 1, or two names, such as 2,4 or German,English, got {columns!r}")
    return names


def named(source: str | None, target: str | None, columns: str) -> list[tuple[str, str]]:
    """Names that source and target may have, the surest first."""
    if names := columns_of(columns):
        return [(names[0], names[1])]
    return ([(source, target)] if source and target else []) + [("source", "target")]


def tsv_rows(path: Path) -> Iterator[Row]:
    return ((number, line.split("\t")) for number, line in enumerate(lines(path), 1))


def csv_rows(path: Path) -> Iterator[Row]:
    """Quoted columns may hold commas, quotes and line feeds."""
    reader = csv.reader((f"{line}\n" for line in lines(path)), strict=True)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: not CSV ({error})") from error
        if row is None:
            return
        yield reader.line_num, row


def read_table(
    path: Path, rows: Iterable[Row], source: str | None, target: str | None, columns: str = "", notes: Notes | None = None
) -> Iterator[Pair]:
    """Pairs of two columns; a blank line is a pair of empty texts.

    columns: "2,4" by number, from 1; "German,English" by what the first line calls them. Without it, those that the first line
             calls as the languages (de, German or Deutsch), or source and target; else the first two columns of every line.
    notes:   gets a line where there are more columns, and nothing has told which ones to take.
    Errors:  `DataError` that names the line if it lacks a column, and lists the columns if there is none of that name.
    """
    names, places = columns_of(columns), None
    notes = {} if notes is None else notes
    for number, row in rows:
        if places is None:
            places, header = layout([cell.strip() for cell in row], names, likely(source, target), path)
            if header:
                names = names or [row[place] for place in places]
                continue
        if not names and any(cell.strip() for cell in row[2:]):
            notes.setdefault(str(path), f"{path}, line {number}: {len(row)} columns, 1,2 are taken: --columns chooses others")
        if not any(cell.strip() for cell in row):
            yield Placed("", "", path, "line", number)
        elif len(row) <= max(places):
            between = "a tab" if ".tsv" in path.suffixes else "a comma"
            lacking = f"no column {max(places) + 1}, it has {len(row)}"
            both = f"source and target must stand in two columns with {between} between"
            raise DataError(f"{path}, line {number}: {lacking if names else both}")
        else:
            yield Placed(row[places[0]], row[places[1]], path, "line", number)


def likely(source: str | None, target: str | None) -> list[tuple[set[str], set[str]]]:
    """What a header may call source and target, in small letters, the surest first."""
    return ([(called(source), called(target))] if source and target else []) + [({"source"}, {"target"})]


def called(language: str) -> set[str]:
    """A language by its code, in English, and in itself, as far as it is known here."""
    names = {language}
    with contextlib.suppress(ImportError, LookupError, ValueError):
        from babel import Locale, UnknownLocaleError

        with contextlib.suppress(UnknownLocaleError):
            locale = Locale.parse(language.replace("-", "_"))
            names |= {locale.get_display_name("en") or "", locale.get_display_name() or ""}
    return {name.lower() for name in names if name}


def layout(
    first: Sequence[str], names: Sequence[str], known: Sequence[tuple[set[str], set[str]]], path: Path
) -> tuple[list[int], bool]:
    """The places of source and target, from 0, and whether the first line is a header that has told them."""
    if names:
        return [place_of(name, first, path) for name in names], not all(name.isdecimal() for name in names)
    for pair in known:
        places = [next((n for n, cell in enumerate(first) if cell.lower() in names), -1) for names in pair]
        if min(places) >= 0 and places[0] != places[1]:
            return places, True
    return [0, 1], False


def place_of(name: str, header: Sequence[str], path: Path) -> int:
    """From 0, of a column by its number or name."""
    if name.isdecimal():
        return int(name) - 1
    if name not in header:
        raise DataError(f"--columns: {path} has no column {name!r}, its first line has {', '.join(map(repr, header))}")
    return header.index(name)


def json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Number of each line that is not blank, and what its JSON says. Errors: `DataError` that names the line."""
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: not JSON ({error})") from error


def read_jsonl(path: Path, source: str | None, target: str | None, columns: str = "") -> Iterator[Pair]:
    names = named(source, target, columns)
    for number, row in json_rows(path):
        yield Placed(*pair_of(row, names, f"{path}, line {number}"), path, "line", number)


def pair_of(row: Any, names: Sequence[tuple[str, str]], where: str) -> Pair:
    """The texts of the first names that an object has both of, as it is or within "translation"."""
    inner = row.get("translation", row) if isinstance(row, dict) else row
    if isinstance(inner, dict):
        for first, second in names:
            if isinstance(inner.get(first), str) and isinstance(inner.get(second), str):
                return whole_characters(inner[first], where), whole_characters(inner[second], where)
    keys = " ".join(", ".join(map(str, inner)).split()) if isinstance(inner, dict) else ""
    found = f"the keys {keys}" if isinstance(inner, dict) else type(inner).__name__
    expected = ", or ".join(f"{first!r} and {second!r}" for first, second in names)
    raise DataError(f"{where}: expected texts {expected}, got {found}")


def whole_characters(text: str, where: str) -> str:
    """The text. Errors: `DataError` if it holds half a character, as an escape such as \\ud83d alone."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {text[error.start : error.end]!a} is half a character") from error
    return text
