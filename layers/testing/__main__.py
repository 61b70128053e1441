"""Checks a block that has no contract: ``python -m layers.testing package.module:Block`` also prints a draft of one.

Constructor arguments are drawn from annotations and defaults, and the axes of inputs are found by trying; what cannot be guessed
is given: ``--set dim=8,16``, ``--input 'ids=b n < vocab_size'``. The exit status is 1 where a property fails, 2 where nothing can
be checked.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import settings
from torch import nn

from layers.testing import profiles
from layers.testing.draft import Draft, draft
from layers.testing.drawing import part
from layers.testing.examples import first_line, outcomes
from layers.testing.guesses import Unclear
from layers.testing.properties import GENERIC

WORDS = {"passed": "green", "failed": "red", "skipped": "skipped"}
COLOURS = {"passed": "\033[32m", "failed": "\033[31m", "skipped": "\033[33m"}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m layers.testing", description="Check a block without a contract, and draft one.")
    parser.add_argument("block", help="package.module:Block, or path/to/file.py:Block")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUES", help="a constructor argument: dim=8 or dim=4,8"
    )
    parser.add_argument(
        "--input", action="append", default=[], metavar="NAME=AXES", help="'x=b n dim', 'x=b c=3 y x' or 'ids=b n < vocab_size'"
    )
    parser.add_argument("--examples", type=int, default=4, metavar="N", help="configurations of each property at most (4)")
    parser.add_argument("--seconds", type=float, metavar="N", help="what has not begun by then is skipped")
    parser.add_argument("--only", action="append", default=[], metavar="PROPERTY", help="check this property, and no other")
    parser.add_argument("--draft-only", action="store_true", help="print the contract and check nothing")
    options = parser.parse_args(words)
    if options.examples < 1:
        parser.error(f"--examples must be at least 1, got {options.examples}")
    if unknown := sorted(set(options.only) - {prop.name for prop in GENERIC}):
        parser.error(f"--only must name properties, got {', '.join(unknown)}")
    try:
        block = found(options.block)
        given = {name: values(text) for name, text in pairs("--set", options.set).items()}
        drafted = draft(block, given, pairs("--input", options.input), named(options.block))
    except ValueError as error:
        print(f"{options.block}: {error}", file=sys.stderr)
        return 2
    if options.draft_only:
        print(drafted)
        return 0
    return checked(drafted, options)


def checked(drafted: Draft, options: argparse.Namespace) -> int:
    contract = drafted.contract()
    profiles_of(options.examples)
    counts: Counter[str] = Counter()
    print(f"{'property':<22}result   seconds  why")
    for o in outcomes(contract, options.only, options.examples, options.seconds):
        counts[o.how] += 1
        word = f"{COLOURS[o.how] if sys.stdout.isatty() else ''}{WORDS[o.how]:<7}{chr(27) + '[0m' if sys.stdout.isatty() else ''}"
        print(f"{o.name:<22}{word} {o.seconds:8.1f}  {o.message}".rstrip(), flush=True)
        for line in o.lessons:
            print(f"{'':<24}{line}")
    print(", ".join(f"{counts[how]} {word}" for how, word in WORDS.items()))
    print(f"\nA draft of a contract, to be put into a test file and gone on from:\n\n{drafted}")
    return 1 if counts["failed"] else 0 if counts["passed"] else 2


def profiles_of(examples: int) -> None:
    """The same configurations every time."""
    settings.register_profile("draft", max_examples=examples, derandomize=True, database=None, **profiles.COMMON)
    settings.load_profile("draft")


def pairs(option: str, texts: list[str]) -> dict[str, str]:
    for text in texts:
        if not re.match(r"\w+\s*=.", text):
            raise Unclear(f"{option} must be NAME=..., got {text!r}")
    return {name.strip(): value.strip() for name, _, value in (text.partition("=") for text in texts)}


def values(text: str) -> list[Any]:
    """``4,8``, ``(3, 5)``, ``batch,row``, ``torch.nn:ReLU`` for a class, ``torch.nn:ReLU()`` for a module."""
    pieces = re.split(r",(?![^(\[{]*[)\]}])", text)
    return [value(piece.strip()) for piece in pieces]


def value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if re.fullmatch(r"[\w.]+:[\w.]+(\(\))?", text):
            factory: Any = found(text.removesuffix("()"))
            return part(factory) if text.endswith("()") else factory
        return text


def named(text: str) -> str:
    """``module:name``, where a file may be given in place of a module."""
    place, _, name = text.rpartition(":")
    return f"{Path(place).stem}:{name}" if place.endswith(".py") else text


def found(text: str) -> Any:
    place, _, name = text.rpartition(":")
    if not (place and name):
        raise Unclear("the block must be given as package.module:Block")
    if place.endswith(".py"):
        sys.path.insert(0, str(Path(place).resolve().parent))
    try:
        target: Any = importlib.import_module(named(text).partition(":")[0])
    except Exception as error:  # of the file itself
        raise Unclear(f"{place} cannot be imported: {first_line(error)}") from error
    for step in name.split("."):
        if not hasattr(target, step):
            blocks = [k for k, v in vars(target).items() if inspect.isclass(v) and issubclass(v, nn.Module)]
            raise Unclear(f"{place} has no {name}; its blocks are {', '.join(blocks) or 'none'}")
        target = getattr(target, step)
    if not callable(target):
        raise Unclear(f"{name} is no class or function that builds a block, but {target!r}")
    return target


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
