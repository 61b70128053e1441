"""Docstrings of Python's own standard library: which of twelve packages does a text come from?

Everybody has them. The classes are the top-level modules and packages with the most docstrings, so that another version of Python
has somewhat other ones.
"""

from __future__ import annotations

import ast
import inspect
from collections import Counter
from collections.abc import Iterator

from tasks.data import DataError
from tasks.data.documents import stdlib

CLASSES = 12
SHORTEST = 20
"""Characters; shorter docstrings say nothing."""


def docstrings() -> list[tuple[str, str]]:
    """Docstring and the top-level module that it is from, such as ("Return a new Event object.", "asyncio"), in order of files.

    Each text comes once; what stands in several modules is left out. Errors: `DataError` where Python has no source.
    """
    found: dict[str, str] = {}
    several: set[str] = set()
    for document in stdlib():
        module = document.name.split("/")[0].removesuffix(".py")
        for text in texts_of(document.text):
            if found.setdefault(text, module) != module:
                several.add(text)
    rows = [(text, module) for text, module in found.items() if text not in several]
    counts = Counter(module for _, module in rows)
    classes = {name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:CLASSES]}
    if len(classes) < CLASSES:
        raise DataError(f"the standard library has docstrings in {len(classes)} modules, expected {CLASSES}: give --train")
    return [row for row in rows if row[1] in classes]


def texts_of(source: str) -> Iterator[str]:
    """The docstrings of a module, its classes and functions, without indentation."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # made for another version of Python
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
            if len(text) >= SHORTEST:
                yield text
