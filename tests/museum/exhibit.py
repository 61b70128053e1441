"""An exhibit: a historic bug, put back into a function of this project, and the check that must turn red.

    with broken(exhibit):            # the function computes what `new` says in place of `old`
        check(exhibit)               # raises

`check` runs one property of a block's contract, the same that every run of the tests draws examples for, or a plain test of a law
where no contract says it. It is told nothing about the bug.
"""

from __future__ import annotations
import __future__

import ast
import functools
import importlib.util
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FunctionType
from typing import Any

from hypothesis import Phase, settings

from layers.testing import profiles
from layers.testing.contract import Contract
from layers.testing.examples import examples, promised

TESTS = Path(__file__).parents[1]
QUIET = dict(profiles.COMMON, max_examples=20, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])
settings.register_profile("museum", **QUIET)
settings.register_profile("museum of contracts", **(QUIET | dict(max_examples=1000)))  # `Exhibit.examples` says when to stop


@dataclass(frozen=True)
class Exhibit:
    """A bug and what finds it.

    name:     in a few words. story: one sentence about what goes wrong.
    seen:     public threads about it, such as "pytorch/pytorch#108108". cf: about a related bug; this one is our own.
    function: into which it is put. old, new: its source, in which `old` stands once, and what it is replaced by.
    proof:    "file of tests/:name" of a `Contract`, or of a test function without fixtures.
    property: the contract's test that must fail; empty for a test function, which is called with `arguments`.
    examples: it fails within so many drawn configurations; of a test function, of those that hypothesis draws.
    """

    name: str
    story: str
    seen: tuple[str, ...]
    function: Callable[..., Any]
    old: str
    new: str
    proof: str
    property: str = ""
    arguments: tuple[Any, ...] = ()
    examples: int = 40
    cf: bool = False


class Missed(Exception):
    """So many examples have not shown the bug."""


def plain(function: Callable[..., Any]) -> FunctionType:
    """The function itself, without decorators that keep what they wrap."""
    found: Any = inspect.unwrap(function)
    return found


def rewritten(exhibit: Exhibit) -> FunctionType:
    """The function with the bug, as a new one; its free variables are those of the old one, in name and order."""
    function = plain(exhibit.function)
    source = textwrap.dedent(inspect.getsource(function))
    if (count := source.count(exhibit.old)) != 1:
        raise LookupError(f"{exhibit.name}: old stands {count} times in {function.__qualname__}, once would be right")
    (definition,) = ast.parse(source.replace(exhibit.old, exhibit.new)).body
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    free = [name for name in function.__code__.co_freevars if name != "__class__"]
    around = ast.parse(f"def around({', '.join(free)}):\n    class Around:\n        pass\n    return Around")
    outer: Any = around.body[0]
    outer.body[0].body = [definition]  # within a class, so that `super()` finds one
    ast.fix_missing_locations(around)
    space: dict[str, Any] = {}
    flags = __future__.annotations.compiler_flag
    exec(compile(around, inspect.getfile(function), "exec", flags, dont_inherit=True), function.__globals__, space)
    new = vars(space["around"](*free))[definition.name]
    if new.__code__.co_freevars != function.__code__.co_freevars:
        raise LookupError(f"{exhibit.name}: the new source has other free variables")
    return new


@contextmanager
def broken(exhibit: Exhibit) -> Iterator[None]:
    """Within, the function has the bug, for all who hold it; defaults are the new source's too."""
    function, names = plain(exhibit.function), ("__code__", "__defaults__", "__kwdefaults__")
    new, before = rewritten(exhibit), {name: getattr(function, name) for name in names}
    try:
        for name in names:
            setattr(function, name, getattr(new, name))
        yield
    finally:
        for name, value in before.items():
            setattr(function, name, value)


@contextmanager
def derandomized(name: str = "museum") -> Iterator[None]:
    """Within, hypothesis draws the same examples every time, and does not look for smaller ones."""
    profile: Any = vars(settings).get("_current_profile") or "default"
    settings.load_profile(name)
    try:
        yield
    finally:
        settings.load_profile(profile)


@functools.cache
def module(path: str) -> Any:
    """A file of tests, on its own: pytest does not collect what is imported so. It finds what lies beside it."""
    spec = importlib.util.spec_from_file_location(f"museum_{path.replace('/', '_').removesuffix('.py')}", TESTS / path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    beside = str((TESTS / path).parent)
    sys.path.append(beside)
    try:
        spec.loader.exec_module(found)
    finally:
        sys.path.remove(beside)
    return found


def proof(exhibit: Exhibit) -> Any:
    path, _, name = exhibit.proof.partition(":")
    with derandomized():
        return getattr(module(path), name)


def names(contract: Contract) -> list[str]:
    return [name for name, _, _ in promised(contract)]


def check(exhibit: Exhibit, limit: int | None = None) -> int:
    """Looks for the bug, in `limit` configurations in place of the exhibit's; how many it took. Raises what the check raises."""
    found, seen, most = proof(exhibit), 0, limit or exhibit.examples
    if not exhibit.property:
        with derandomized():
            found(*exhibit.arguments)
        return 1
    prop, twin = next((prop, twin) for name, prop, twin in promised(found) if name == exhibit.property)

    def counted(*given: Any) -> Any:
        nonlocal seen
        seen += 1
        if limit is None and seen > most + 1:  # hypothesis repeats the one that fails
            raise Missed(f"{exhibit.name}: nothing seen in {most} examples")
        return prop.check(*given)

    budget = most * (4 if found.model else 1)  # what a model's examples cost
    with derandomized("museum of contracts"):
        examples(found, replace(prop, check=counted, cost=1), twin, shrink=False, limit=budget)()
    return seen
