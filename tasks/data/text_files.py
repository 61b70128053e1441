"""What all readers of text share: files as bytes, lines of UTF-8, and packages that may be missing.

Files may end in .gz as well. Only a line feed ends a line: others that Unicode has, such as U+2028, occur within sentences.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tasks.data import DataError
from zoo.files import first_line

Pair = tuple[str, str]
"""Source and target."""


class Placed(tuple[str, str]):
    """A pair that knows where it stands, such as ("corpus.tsv", "line", 7); any other pair does not."""

    place: tuple[str, str, int]

    def __new__(cls, source: str, target: str, *place: Any) -> Placed:
        pair = super().__new__(cls, (source, target))
        pair.place = place  # type: ignore
        return pair


def where(pair: Pair) -> str:
    """File and line, nothing where they are not known."""
    return "{}, {} {}".format(*pair.place) if isinstance(pair, Placed) else ""


MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""What files in other encodings begin with; the longer marks first."""


def optional(name: str) -> Any:
    """A module of a package that only some tasks need; `DataError` tells how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        extra = "hub" if package == "datasets" else "translation"
        raise DataError(f'{package} is not installed: pip install "zooproof[{extra}]" brings it') from error


def hub_splits(name: str, path: str, config: str | None) -> Any:
    """All splits of a data set of the Hugging Face hub. Errors: `DataError` that names it, hf:`name`, if it cannot be had."""
    datasets = optional("datasets")
    try:
        return datasets.load_dataset(path, config)
    except Exception as error:  # of many kinds: no network, no such set, no such configuration
        raise DataError(f"hf:{name} is not in the cache and could not be fetched ({first_line(error)})") from error


def open_bytes(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Any]:
    """The file's bytes; damage to a .gz file is a `DataError`."""
    try:
        with open_bytes(path) as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is truncated or damaged, not gzip ({error})") from error


def require_utf8(head: bytes, name: str) -> None:
    """Errors: `DataError` that names the encoding, if a text that begins like this is UTF-16 or UTF-32."""
    found = next((encoding for mark, encoding in MARKS.items() if head.startswith(mark)), "")
    if not found and 3 * head.count(0) > len(head):
        found = "UTF-16"
    if found:
        raise DataError(f"{name} is {found}: convert it to UTF-8, such as by iconv -f {found} -t UTF-8")


def decoded(raw: Iterable[bytes], name: str) -> Iterator[str]:
    """Lines of UTF-8 without their ends; a byte order mark is no part of the first.

    Errors: `DataError` that names the file and the line, where it is no UTF-8.
    """
    for number, line in enumerate(raw, 1):
        if number == 1:
            require_utf8(line, name)
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            where = f"{error.reason} at byte {error.start + 1}"
            raise DataError(f"{name}, line {number}: not UTF-8 ({where}): convert it to UTF-8") from error


def lines(path: Path) -> Iterator[str]:
    """The lines of a file, as `decoded` has them."""
    with reading(path) as file:
        yield from decoded(file, str(path))


def count_lines(path: Path) -> int:
    count, last = 0, b"\n"
    with reading(path) as file:
        while block := file.read(1 << 20):
            if count == 0:
                require_utf8(block[:4096], str(path))
            count, last = count + block.count(b"\n"), block[-1:]
    return count + (last != b"\n")
