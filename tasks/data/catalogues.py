"""Pairs out of what translators work with: gettext's catalogues of messages, .po and .mo, and translation memories, .tmx."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tasks.data import DataError
from tasks.data.text_files import Pair, Placed, optional, reading, require_utf8

LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
CODES = {"bpt", "ept", "it", "ph", "ut"}
"""Tags of TMX that hold codes of a document's format, no text."""


def read_gettext(path: Path, source: str | None) -> Iterator[Pair]:
    """Translated messages, singular and plural; from id to translation, or back if the catalogue is in the source language."""
    optional("babel")
    from babel.messages.mofile import read_mo
    from babel.messages.pofile import PoFileError, read_po

    if ".mo" not in path.suffixes:
        with reading(path) as file:
            require_utf8(file.peek(4096)[:4096], str(path))
    try:
        with reading(path) as file:
            catalog = read_mo(file) if ".mo" in path.suffixes else read_po(file, ignore_obsolete=True, abort_invalid=True)
    except PoFileError as error:
        raise DataError(f"{path}, line {error.lineno + 1}: no part of a catalogue of messages") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}{line_of(path, error)}: not {error.encoding} ({error.reason})") from error
    except (OSError, ValueError, LookupError, struct.error) as error:
        raise DataError(f"{path} is damaged, no catalogue of messages ({error})") from error
    back = source is not None and catalog.locale is not None and catalog.locale.language == re.split("[-_]", source)[0]
    for message in catalog:
        if message.id and not message.fuzzy:
            ids, strings = ([x] if isinstance(x, str) else list(x or [""]) for x in (message.id, message.string))
            for first, second in dict.fromkeys([(ids[0], strings[0]), (ids[-1], strings[-1])]):
                texts = (second, first) if back else (first, second)
                yield texts if message.lineno is None else Placed(*texts, path, "line", message.lineno)


def line_of(path: Path, error: UnicodeDecodeError) -> str:
    """Where the bytes are that cannot be decoded; nowhere in a .mo file, which has no lines."""
    with reading(path) as file:
        found = (n for n, line in enumerate(file, 1) if ".mo" not in path.suffixes and error.object in (line, line.rstrip()))
        return next((f", line {n}" for n in found), "")


# ---------------------------------------------------------------------------------------------------------------------- TMX


def read_tmx(path: Path, source: str | None, target: str | None) -> Iterator[Pair]:
    """Pairs of the units that have both languages; `de` stands for `de-DE` too. Codes within segments are left out.

    One unit is in memory at a time. Nothing that a file names is opened, and expat stops at entities that grow without measure.
    Errors: `DataError` for what is no XML, and with the languages that there are, if no unit has both.
    """
    found, languages = 0, dict[str, None]()
    for number, texts in enumerate(units(path), 1):
        languages |= dict.fromkeys(texts)
        pair = [text_in(texts, language) for language in (source, target)]
        if pair[0] is not None and pair[1] is not None:
            found += 1
            yield Placed(pair[0], pair[1], path, "unit", number)
        elif not (source and target):
            break
    if not found:
        there = " ".join(", ".join(languages).split()) or "none"
        given = f"no unit in {source} and {target}" if source and target else "no languages to take: give --source and --target"
        raise DataError(f"{path} has {given}; its languages are {there}")


def units(path: Path) -> Iterator[dict[str, str]]:
    """The texts of every <tu> by language."""
    above: list[Any] = []
    try:
        with reading(path) as file:
            for event, element in ElementTree.iterparse(file, ("start", "end")):
                if event == "start":
                    above.append(element)
                    continue
                above.pop()
                if tag(element) == "tu":
                    yield texts_of(element)
                    above[-1].remove(element)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged, no translation memory ({error})") from error


def texts_of(unit: Any) -> dict[str, str]:
    """The first segment of every language."""
    found: dict[str, str] = {}
    for variant in unit:
        segment = next((child for child in variant if tag(child) == "seg"), None)
        if tag(variant) == "tuv" and segment is not None:
            for code in [element for element in segment.iter() if tag(element) in CODES]:
                rest = code.tail
                code.clear()
                code.tail = rest
            found.setdefault(variant.get(LANGUAGE) or variant.get("lang") or "", "".join(segment.itertext()))
    return found


def text_in(texts: dict[str, str], language: str | None) -> str | None:
    """The text in that language, or in the first of its varieties."""
    wanted = (language or "").lower().replace("_", "-")
    known = {name.lower().replace("_", "-"): name for name in texts}
    fitting = [name for name in known if wanted and (name == wanted or name.startswith(f"{wanted}-"))]
    return texts[known[min(fitting, key=len)]] if fitting else None


def tag(element: Any) -> str:
    """Its name without a namespace; comments have none."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
