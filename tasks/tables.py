"""Rows of results as a file: CSV with a header, or JSON lines."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tasks.options import UserError

BREAKS = re.compile("[\x85\u2028\u2029]")
"""Ends of lines that JSON leaves as they are."""


def require_table(name: str, path: str) -> None:
    """Errors: `UserError` unless `path` is empty, or can be written and tells a format: .csv or .jsonl; a pipe gets CSV."""
    if not path:
        return
    file = Path(path)
    known = file.suffix.lower() in (".csv", ".jsonl") or (file.exists() and not file.is_file())
    if not known or file.is_dir() or not file.parent.is_dir():
        raise UserError(f"{name} must be a .csv or .jsonl file in a folder that exists, got {path}")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UserError(f"{name} {path} may not be written")


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """An object a line, whatever `str.splitlines` holds to be a line's end."""
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    return "".join(BREAKS.sub(lambda found: f"\\u{ord(found[0]):04x}", line) + "\n" for line in lines)


def write_table(path: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Every row has the same names. A value that is a mapping is an object in JSON, in CSV a column NAME.KEY for each key."""
    from zoo import files

    if Path(path).suffix.lower() == ".jsonl":
        text = json_lines(rows)
    else:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        for n, row in enumerate(rows):
            flat = [
                pair
                for name, value in row.items()
                for pair in ([(f"{name}.{k}", v) for k, v in value.items()] if isinstance(value, Mapping) else [(name, value)])
            ]
            if not n:
                writer.writerow([name for name, _ in flat])
            writer.writerow([value for _, value in flat])
        text = buffer.getvalue()
    files.write_bytes(Path(path), text.encode())
