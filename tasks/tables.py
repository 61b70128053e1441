"""Rows of results written one by one: JSON lines, CSV or TSV under a line of names, or lines of text."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.options import UserError

FORMATS = ("csv", "tsv", "jsonl")
FILES = ".csv, .tsv or .jsonl file; a pipe, and - for standard output, get JSON lines"
"""What `--help` says of an option that takes a table."""
BREAKS = re.compile("[\x85\u2028\u2029]")
"""Ends of lines that JSON leaves as they are."""


def format_of(path: str, otherwise: str = "jsonl") -> str:
    """What the ending tells, or `otherwise`."""
    ending = Path(path).suffix.lower()[1:]
    return ending if ending in FORMATS else otherwise


def require_table(name: str, path: str, lines: bool = False) -> None:
    """Errors: `UserError` if `writing` cannot write there; with `lines` a file may end as it likes."""
    if path != "-":
        require_writable(name, path, () if lines else [f".{form}" for form in FORMATS])


def require_writable(name: str, path: str, endings: Sequence[str] = ()) -> None:
    """Errors: `UserError` unless `path` is "" or a file of one of these endings can be there; a pipe or a device needs none."""
    if not path:
        return
    file = Path(path)
    if file.is_dir():
        raise UserError(f"{name} {path} is a folder: give a file")
    plain = file.is_file() or not file.exists()
    if endings and plain and file.suffix.lower() not in endings:
        raise UserError(f"{name} must end in {' or '.join(endings)}, got {path}")
    folder = file.resolve().parent
    if not folder.is_dir():
        raise UserError(f"{name} {path}: the folder {folder} is not there")
    needed = [file] * file.exists() + [folder] * plain  # where a file is replaced, not written over
    if not all(os.access(place, os.W_OK) for place in needed):
        raise UserError(f"{name} {path} may not be written")


@contextlib.contextmanager
def writing(path: str, form: str = "", widths: Mapping[str, int] | None = None) -> Iterator[Callable[[Iterable[Any]], None]]:
    """Gives `write(rows)`, which may be called again and again, and keeps none; a file is there, whole, once the block has ended.

    path:   as `zoo.files.writing` has it; "-" is standard output, and what is printed meanwhile goes to standard error; "" none.
    form:   one of `FORMATS`, or "lines"; by default what the path tells.
    widths: for lists that take several columns of a table, NAME_1, NAME_2 ..., how many.
    A row is a mapping, of the same names each time; of "lines" it is a text. In a table a mapping takes a column NAME.KEY for
    each key, a list is JSON, None is empty. A row is one line to every reader; in CSV, line breaks stand in quotes.
    Errors: `OSError` that names the path.
    """
    from zoo import files

    line = encoder(form or format_of(path), widths or {})
    with nowhere() if not path else standard_output() if path == "-" else files.writing(Path(path)) as put:

        def write(rows: Iterable[Any]) -> None:
            for row in rows:
                put(line(row).encode(errors="backslashreplace"))

        yield write


@contextlib.contextmanager
def nowhere() -> Iterator[Callable[[bytes], object]]:
    yield lambda content: None


@contextlib.contextmanager
def standard_output() -> Iterator[Callable[[bytes], object]]:
    out = sys.stdout
    out.flush()

    def put(content: bytes) -> None:
        out.buffer.write(content)
        out.buffer.flush()

    with contextlib.redirect_stdout(sys.stderr):
        yield put


def encoder(form: str, widths: Mapping[str, int]) -> Callable[[Any], str]:
    """What makes a row into a line, the first one of a table into two."""
    if form in ("lines", "jsonl"):
        return json_line if form == "jsonl" else lambda text: one_line(text) + "\n"
    join = {"csv": csv_line, "tsv": tsv_line}[form]
    names: list[str] = []

    def line(row: Mapping[str, Any]) -> str:
        found = dict(columns(row, widths))
        if names and found.keys() != {*names}:
            raise ValueError(f"rows must have the columns of the first one, {names}, got {[*found]}")
        head = "" if names else join(found)
        names[:] = names or found
        return head + join(found[name] for name in names)

    return line


def columns(row: Mapping[str, Any], widths: Mapping[str, int]) -> Iterator[tuple[str, Any]]:
    """Names and values."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", one) for key, one in value.items())
        elif name in widths:
            names = [name] if widths[name] == 1 else [f"{name}_{n + 1}" for n in range(widths[name])]
            yield from zip(names, [*value, *[None] * (len(names) - len(value))], strict=True)
        else:
            yield name, json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(map(json_line, rows))


def json_line(row: Mapping[str, Any]) -> str:
    """An object, of one line whatever `str.splitlines` holds to be a line's end."""
    return BREAKS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(row, ensure_ascii=False)) + "\n"


def csv_line(values: Iterable[Any]) -> str:
    csv.writer(buffer := io.StringIO()).writerow(values)  # whose own line end is why both of its characters get quotes
    return buffer.getvalue()[:-2] + "\n"


def tsv_line(values: Iterable[Any]) -> str:
    return "\t".join("" if value is None else one_line(str(value)).replace("\t", " ") for value in values) + "\n"


def one_line(text: str) -> str:
    """The text with a space for each line break, whatever Unicode or `str.splitlines` holds to be one."""
    return " ".join(text.splitlines())
