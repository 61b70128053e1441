"""Small bugs of a Python source: every place where one of `KINDS` can be put, found in its syntax tree.

A mutant replaces some bytes of the source, so that all else stands as it was written. Left out is what no test ought to depend
on: annotations, docstrings, texts of errors and of `repr`, and what `require` is told beside its condition.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

KINDS = {
    "comparison": "`<` for `<=`, `!=` for `==`, `not in` for `in`",
    "arithmetic": "`-` for `+`, `/` for `*`, `|` for `&`",
    "constant": "a number one more, one less, doubled or 0; `True` for `False`",
    "logic": "`or` for `and`, no `not`, the other branch of an `if`, no minus",
    "statement": "`pass` in place of an assignment, a call or a `raise`",
    "arguments": "two positional arguments in each other's place",
    "keyword": "a keyword argument is not passed",
    "return": "a function returns its first argument at once",
    "slice": "a slice begins one later or ends one earlier",
}
COMPARISONS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.Is: "is not", ast.IsNot: "is",
    ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"), ast.Pow: ("**", "*"), ast.MatMult: ("@", "*"), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"),
    ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<"),
}  # fmt: skip
SYMMETRIC = {"max", "min", "maximum", "minimum", "add", "mul", "allclose", "equal", "isinstance", "getattr"}
"""Calls whose two arguments are alike, or that fail at once if they are exchanged."""
MESSAGES = {"print", "warn", "debug", "info", "warning"}
TEXTS = {"__repr__", "__str__", "extra_repr"}


@dataclass(frozen=True)
class Mutant:
    path: str
    """Of the file, from the root of the repository."""
    function: str
    """Such as `Residual.forward`; empty at the top of a module."""
    kind: str
    lines: tuple[int, int]
    """First and last line of the statement (of its head, if it has a body): a test that runs one of them may notice."""
    start: int
    end: int
    text: str
    old: str
    """The lines that change, without what surrounds them, as they stand in the source."""
    new: str
    early: bool
    """Whether it is executed by the import of the module: a default, a decorator, a constant."""

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]

    def identity(self) -> tuple[str, str, str, str]:
        """What the list of equivalent mutants knows it by: no numbers of lines, so a change elsewhere leaves it alone."""
        return self.path, self.function, self.old, self.new


Place = list[Mutant]
"""Mutants of one kind at one place of the source, of which a sample has one at most."""


def places(path: str, source: bytes) -> list[Place]:
    finder = Finder(path, source)
    finder.body(ast.parse(source).body)
    return [place for place in finder.found if place]


def sample(sources: Iterable[tuple[str, bytes]], seed: int) -> Iterator[Mutant]:
    """All places in random order, and of each one mutant that Python can read."""
    generator = random.Random(seed)
    texts = dict(sources)
    drawn = [place for path, source in texts.items() for place in places(path, source)]
    generator.shuffle(drawn)
    for place in drawn:
        generator.shuffle(place)
        yield from [mutant for mutant in place if is_valid(mutant, texts[mutant.path])][:1]


def is_valid(mutant: Mutant, source: bytes) -> bool:
    """Whether it compiles, and says anything else than the source."""
    try:
        return ast.dump(ast.parse(mutant.apply(source))) != ast.dump(ast.parse(source))
    except SyntaxError:
        return False


def sources(root: Path, packages: Iterable[str]) -> list[tuple[str, bytes]]:
    """Path and text of every module of these packages, or of single files; the kit of tests, `layers/testing`, is none."""
    places = [root / package for package in packages]
    files = (file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*.py"))))
    return [(str(f.relative_to(root)), f.read_bytes()) for f in files if "testing" not in f.parts]


class Finder:
    def __init__(self, path: str, source: bytes) -> None:
        self.path, self.source, self.found = path, source, []
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.names: list[str] = []
        self.lines = (1, 1)
        self.early = True
        self.known: set[str] = set()
        """Variables of the function that have a value by now."""

    # ---------------------------------------------------------------------------------------------------- positions

    def span(self, node: ast.AST) -> tuple[int, int]:
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.source[start:end].decode()

    def add(self, kind: str, *changes: tuple[int, int, str]) -> None:
        """A place, and what may stand there instead."""
        place = []
        for start, end, text in changes:
            first = self.source.rfind(b"\n", 0, start) + 1
            last = self.source.find(b"\n", end)
            last = len(self.source) if last < 0 else last
            old = self.source[first:last].decode()
            new = (self.source[first:start] + text.encode() + self.source[end:last]).decode()
            name = ".".join(self.names)
            place.append(Mutant(self.path, name, kind, self.lines, start, end, text, squeezed(old), squeezed(new), self.early))
        self.found.append(place)

    # --------------------------------------------------------------------------------------------------------- walk

    def body(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        outer = self.lines
        inner = [b for name in ("body", "orelse", "finalbody") for b in getattr(node, name, [])]
        inner += [b for part in (*getattr(node, "handlers", []), *getattr(node, "cases", [])) for b in part.body]
        head = min((b.lineno for b in inner if isinstance(b, ast.stmt)), default=node.end_lineno + 1) - 1
        self.lines = (node.lineno, max(node.lineno, head))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self.function(node)
        elif isinstance(node, ast.ClassDef):
            self.names.append(node.name)
            self.body(node.body)
            self.names.pop()
        elif not (is_typing(node) or is_text_alone(node) or (self.early and is_alias(node))):
            if not self.early and self.can_go(node):
                self.add("statement", (*self.span(node), "pass"))
            self.children(node)
            self.known |= set(assigned(node))
        self.lines = outer

    def can_go(self, node: ast.stmt) -> bool:
        """Whether the rest can run without it: not where it gives a variable its first value."""
        if isinstance(node, ast.Expr):
            return not (isinstance(node.value, ast.Call) and named(node.value) in MESSAGES - {"warn"})
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            return self.known.issuperset(assigned(node)) and node.value is not None
        return isinstance(node, ast.Raise)

    def function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for decorator in node.decorator_list:
            self.expression(decorator)
        self.names.append(node.name)
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.expression(default)
        body = node.body[1:] if is_text_alone(node.body[0]) else node.body
        if node.name not in TEXTS and body and not is_stub(body):
            early, self.early = self.early, False
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            known, self.known = self.known, self.known | set(names)
            names = names[1:] if names[:1] in (["self"], ["cls"]) else names
            if names and node.name != "__init__":
                start, lines = self.span(body[0])[0], self.lines
                self.lines = (body[0].lineno, body[0].lineno)
                self.add("return", (start, start, f"return {names[0]}\n" + " " * body[0].col_offset))
                self.lines = lines
            self.body(body)
            self.early, self.known = early, known
        self.names.pop()

    def children(self, node: ast.AST) -> None:
        if isinstance(node, ast.Raise):
            return
        if isinstance(node, ast.If | ast.IfExp) and not isinstance(node.test, ast.Compare):
            self.add("logic", (*self.span(node.test), f"not ({self.text(node.test)})"))
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "msg", "targets", "ctx"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.stmt):
                    self.statement(child)
                elif isinstance(child, ast.ExceptHandler | ast.match_case):
                    self.body(child.body)
                elif isinstance(child, ast.AST):
                    self.expression(child)

    def expression(self, node: ast.AST) -> None:
        if isinstance(node, ast.JoinedStr):
            return
        find = getattr(self, "in_" + type(node).__name__.lower(), None)
        if find is None or find(node) is not False:
            self.children(node)

    # ----------------------------------------------------------------------------------------------------- operators

    def between(self, left: ast.AST, right: ast.AST, old: str, new: str) -> list[tuple[int, int, str]]:
        """The operator between two operands, replaced."""
        start, end = self.span(left)[1], self.span(right)[0]
        found = re.search(old, self.source[start:end].decode())
        return [(start + found.start(), start + found.end(), new)] if found else []

    def in_compare(self, node: ast.Compare) -> None:
        for left, operator, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            self.add("comparison", *self.between(left, right, r"[<>=!]+|is\s+not|is|not\s+in|in", COMPARISONS[type(operator)]))

    def in_binop(self, node: ast.BinOp) -> None:
        if type(node.op) in ARITHMETIC and not isinstance(node.left, ast.JoinedStr) and not is_text(node.left):
            old, new = ARITHMETIC[type(node.op)]
            self.add("arithmetic", *self.between(node.left, node.right, re.escape(old), new))

    def in_boolop(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.add("logic", *self.between(left, right, rf"\b{old}\b", new))

    def in_unaryop(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub) and not isinstance(node.operand, ast.Constant):
            self.add("logic", (self.span(node)[0], self.span(node.operand)[0], ""))

    def in_constant(self, node: ast.Constant) -> None:
        value, place = node.value, self.span(node)
        if isinstance(value, bool):
            self.add("constant", (*place, repr(not value)))
        elif isinstance(value, int | float):
            others = [value + 1, value - 1, value * 2, 0] if isinstance(value, int) else [value * 2, value + 1.0, 0.0]
            others = [other for other in dict.fromkeys(others) if other != value]
            self.add("constant", *((*place, repr(other) if other >= 0 else f"({other!r})") for other in others))

    def in_call(self, node: ast.Call) -> bool | None:
        name = named(node)
        if name in MESSAGES or name == "cast":
            for argument in node.args[1:] if name == "cast" else []:
                self.expression(argument)
            return False
        if name.startswith("require"):
            self.expression(node.args[0])
            for keyword in node.keywords:
                self.keyword(keyword)
            return False
        for left, right in zip(node.args, node.args[1:], strict=False):
            if name not in SYMMETRIC and not isinstance(left, ast.Starred) and not isinstance(right, ast.Starred):
                (start, end), (begin, stop) = self.span(left), self.span(right)
                between = self.source[end:begin].decode()
                self.add("arguments", (start, stop, self.text(right) + between + self.text(left)))
        for keyword in node.keywords:
            self.keyword(keyword)
        return None

    def keyword(self, node: ast.keyword) -> None:
        start, end = self.span(node)
        comma = re.match(rb"\s*,\s*", self.source[end:])
        self.add("keyword", (start, end + (comma.end() if comma else 0), ""))

    def in_slice(self, node: ast.Slice) -> None:
        start = self.span(node)[0]
        after = self.span(node.lower)[1] if node.lower else start
        colon = self.source.index(b":", after) + 1
        later = (*self.span(node.lower), f"{self.text(node.lower)} + 1") if node.lower else (start, start, "1")
        earlier = (*self.span(node.upper), f"{self.text(node.upper)} - 1") if node.upper else (colon, colon, "-1")
        self.add("slice", later, earlier)


def named(call: ast.Call) -> str:
    """The last name of what is called."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def assigned(node: ast.stmt) -> list[str]:
    """Variables that a statement gives a value."""
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return [
        n.id for target in targets if target for n in ast.walk(target) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    ]


def squeezed(text: str) -> str:
    return " ".join(text.split())


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def is_text_alone(node: ast.stmt) -> bool:
    """A docstring, or `...`."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def is_stub(body: list[ast.stmt]) -> bool:
    """A body that says only that there is none."""
    raised = isinstance(body[0], ast.Raise) and "NotImplementedError" in ast.dump(body[0])
    return len(body) == 1 and (is_text_alone(body[0]) or raised)


def is_typing(node: ast.stmt) -> bool:
    imported = isinstance(node, ast.Import | ast.ImportFrom)
    return imported or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))


def is_alias(node: ast.stmt) -> bool:
    """A type that gets a name."""
    value = getattr(node, "value", None)
    return isinstance(value, ast.Subscript) or (isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr))


def every(sources: Iterable[tuple[str, bytes]]) -> Iterator[Mutant]:
    for path, source in sources:
        for place in places(path, source):
            yield from place
