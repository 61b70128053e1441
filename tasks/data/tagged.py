"""Texts whose words have labels: columns as CoNLL's, and XML as that of the package usaddress.

    .conll .txt .tsv ...  a word a line, its tag in the last column, columns between spaces or tabs; an empty line ends a text
    .xml                  an element a text, in it an element a word (or some words), whose name is the label

Files may end in .gz as well. What is read are spans over the words of a text, with offsets in characters; words of columns are
joined by spaces. Lines that begin with "-DOCSTART-" are left out, as are comments of CoNLL-U ("# text = ...").
"""

from __future__ import annotations

import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.data import DataError
from tasks.data.spans import SCHEMES, BadTag, Span, prefixed, runs, scheme_of, to_spans, to_tags
from tasks.data.text_files import lines, reading

COMMENT = re.compile(r"# ?[\w:.]+ = |# newdoc|# newpar")
JOINER = "\N{ZERO WIDTH JOINER}"


@dataclass(frozen=True)
class Tagged:
    """A text, its words as (start, end) in characters, and spans of words; `place` is where it was read."""

    text: str
    words: tuple[tuple[int, int], ...]
    spans: tuple[Span, ...]
    place: str = ""

    @property
    def tags(self) -> list[str]:
        """IOB2."""
        return to_tags(self.spans, len(self.words))

    def characters(self, span: Span) -> tuple[int, int]:
        """Where a span of words starts and ends in the text."""
        return self.words[span.start][0], self.words[span.end - 1][1]


def words_of(text: str) -> tuple[tuple[int, int], ...]:
    """Runs of digits, runs of letters, and every other character but spaces by itself; marks stay with what they mark."""
    found: list[tuple[int, int]] = []
    before = " "
    for n, character in enumerate(text):
        if not character.isspace():
            if found and found[-1][1] == n and sticks(before, character):
                found[-1] = (found[-1][0], n + 1)
            else:
                found.append((n, n + 1))
            before = before if continues(character) and character != JOINER else character
    return tuple(found)


def sticks(before: str, character: str) -> bool:
    return (
        continues(character)
        or before == JOINER
        or (before.isalpha() and character.isalpha())
        or (before.isdigit() and character.isdigit())
    )


def continues(character: str) -> bool:
    """Combining marks, variation selectors, skin tones and joiners are no words of their own."""
    return unicodedata.category(character) in ("Mn", "Mc", "Me") or character in "\u200c\u200d" or "🏻" <= character <= "🏿"


def joined(words: Sequence[str], spans: Sequence[Span], place: str = "") -> Tagged:
    """Words with a space between each two."""
    places, end = [], 0
    for word in words:
        places.append((end, end + len(word)))
        end += len(word) + 1
    return Tagged(" ".join(words), tuple(places), tuple(spans), place)


def read(paths: Sequence[str | Path], scheme: str = "auto") -> list[Tagged]:
    """The texts of files, in order. scheme: one of `SCHEMES`, or auto: the one that all tags of a file fit.

    Errors: `DataError` that names file and line.
    """
    found: list[Tagged] = []
    for path in map(Path, paths):
        if not path.is_file():
            raise DataError(f"{path} is {'a folder: give files' if path.is_dir() else 'not there'}")
        is_xml = path.name.removesuffix(".gz").endswith(".xml")
        texts = list(read_xml(path)) if is_xml else read_columns(path, scheme)
        if not texts:
            raise DataError(f"{path}: no words in it")
        found += texts
    return found


def read_columns(path: Path, scheme: str) -> list[Tagged]:
    texts = [*sentences(path)]
    if scheme == "auto":
        scheme = scheme_of([tag for _, _, tag in rows] for rows in texts)
        if not scheme:
            raise DataError(f"{path}: {misfit([row for rows in texts for row in [*rows, (rows[-1][0], '', 'O')]])}")
    found = []
    for rows in texts:
        tags = [tag for _, _, tag in rows]
        try:
            spans = to_spans(tags, scheme)
        except BadTag as error:
            raise DataError(f"{path}, line {rows[error.place][0]}: {error}") from error
        found.append(joined([word for _, word, _ in rows], spans, f"{path}, line {rows[0][0]}"))
    return found


def misfit(rows: Sequence[tuple[int, str, str]]) -> str:
    """Which line no scheme explains."""
    tags = [tag for _, _, tag in rows]
    if not all(tag == "O" or prefixed(tag) for tag in tags):
        n = next(n for n, tag in enumerate(tags) if tag != "O" and not prefixed(tag))
        return f"line {rows[n][0]}: {tags[n]!r} is no tag such as O, B-PER or I-PER, which other lines have"
    furthest = 0, ""
    for scheme in SCHEMES[:3]:
        try:
            to_spans(tags, scheme)
        except BadTag as error:
            furthest = max(furthest, (error.place, str(error)))
    return f"line {rows[furthest[0]][0]}: no scheme fits: {furthest[1]}"


def sentences(path: Path) -> Iterator[list[tuple[int, str, str]]]:
    """Number of the line, word and tag, by text."""
    rows: list[tuple[int, str, str]] = []
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            if rows:
                yield rows
            rows = []
            continue
        if line.startswith("-DOCSTART-") or (not rows and COMMENT.match(line)):
            continue
        columns = line.split("\t") if "\t" in line else line.split(" ")
        columns = [column.strip() for column in columns if column.strip()]
        if len(columns) < 2:
            raise DataError(f"{path}, line {number}: expected a word and its tag, got {line[:60]!r}")
        rows.append((number, columns[0], columns[-1]))
    if rows:
        yield rows


def read_xml(path: Path) -> Iterator[Tagged]:
    """Texts of XML: the children of the root, each with children whose names are labels; what stands between these has none."""
    with reading(path) as file:
        content = file.read()
    if b"<!ENTITY" in content or b"<!DOCTYPE" in content:
        raise DataError(f"{path}: XML with a DOCTYPE is not read: entities may be as large as they like")
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise DataError(f"{path}, line {error.position[0]}: no XML ({error})") from error
    for number, element in enumerate(root, 1):
        words: list[str] = []
        kinds: list[str] = []
        for part, kind in [(element.text, ""), *((x, k) for child in element for x, k in pieces(path, number, child))]:
            new = (part or "").split()
            words, kinds = words + new, kinds + [kind] * len(new)
        if words:
            yield joined(words, runs(kinds), f"{path}, text {number}")


def pieces(path: Path, number: int, child: ElementTree.Element) -> Iterator[tuple[str | None, str]]:
    if len(child):
        raise DataError(f"{path}, text {number}: <{child.tag}> holds other elements, expected words")
    yield child.text, "" if child.tag in ("O", "Null") else child.tag
    yield child.tail, ""
