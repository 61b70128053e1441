"""Rows of a weight map: names with holes for numbers, and the einops patterns that convert their tensors both ways."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor

Tensors = Mapping[str, Tensor]
Get = Callable[[str], Tensor]


class Name:
    """A parameter or module name with `{holes}` for numbers."""

    def __init__(self, template: str, prefix: bool) -> None:
        parts = re.split(r"\{(\w+)\}", template)
        self.holes = tuple(parts[1::2])
        if len(set(self.holes)) < len(self.holes):
            raise ValueError(f"holes of {template!r} must differ, got {', '.join(self.holes)}")
        if any(c in "{}" for p in parts[::2] for c in p) or not all(h.isidentifier() and h[0] != "_" for h in self.holes):
            raise ValueError(f"holes must be named like {{i}}, got {template!r}")
        pattern = "".join(f"(?P<{p}>[0-9]+)" if i % 2 else re.escape(p) for i, p in enumerate(parts))
        rest = r"(\.(?P<_rest>.+))?" if template else r"(?P<_rest>.+)"
        self.template, self.regex = template, re.compile(pattern + (rest if prefix else "(?P<_rest>)"))
        self.literal = bool(template) and not self.holes

    def match(self, name: str) -> tuple[tuple[str, str], ...] | None:
        found = self.regex.fullmatch(name)
        return None if found is None else tuple((k, v or "") for k, v in sorted(found.groupdict().items()))

    def fill(self, values: Mapping[str, str]) -> str:
        return ".".join(part for part in (self.template.format_map(values), values.get("_rest", "")) if part)


@dataclass(frozen=True)
class Row:
    """Our names and theirs, and how the tensors of one side become those of the other."""

    ours: tuple[Name, ...]
    theirs: tuple[Name, ...]
    pattern: str
    sizes: Mapping[str, int]

    @classmethod
    def parse(cls, ours: str, theirs: str, pattern: str = "", sizes: Mapping[str, int] | None = None) -> Row:
        left, right = ([Name(t, prefix=not pattern) for t in side.split() or [""]] for side in (ours, theirs))
        if len(left) > 1 and len(right) > 1:
            raise ValueError(f"one side of a row must be a single name, got {ours!r} and {theirs!r}")
        if len({frozenset(name.holes) for name in left + right}) > 1:
            raise ValueError(f"all names of a row must have the same holes, got {ours!r} and {theirs!r}")
        if any(len(set(side.split())) < len(side.split()) for side in (ours, theirs)):
            raise ValueError(f"names of a row must differ, got {ours!r} and {theirs!r}")
        row = cls(tuple(left), tuple(right), pattern, sizes or {})
        if pattern:
            require_bijection(pattern, len(left), len(right))
            row.try_out()
        return row

    def try_out(self) -> None:
        """Convert a small example there and back: a wrong pattern or a missing size fails here, not at a load."""
        sides = [side.strip() for side in self.pattern.split("->")]
        size = {axis: n for n, axis in enumerate(dict.fromkeys(axes(self.pattern)), start=2)} | dict(self.sizes)
        many = max(len(self.ours), len(self.theirs))
        stacked = many > 1 and "+" not in self.pattern
        if stacked:
            size[sides[len(self.theirs) > 1].split()[0]] = many
        shapes = [axis_lengths(part, size) for part in sides[0].split(",")]
        if stacked and len(self.ours) > 1:
            shapes = [shapes[0][1:]] * many
        ours = [torch.arange(math.prod(shape), device="cpu").reshape(shape) + k for k, shape in enumerate(shapes)]
        try:
            there = self.convert(ours, backward=False, like=[None] * len(self.theirs))
            same = all(same_bits(x, y) for x, y in zip(ours, self.convert(there, True, ours), strict=True))
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"pattern must convert both ways, got {self.pattern!r} ({last_line(error)})") from error
        if not same:
            raise ValueError(f"pattern must give back what it took, got {self.pattern!r}")

    def convert(self, tensors: Sequence[Tensor], backward: bool, like: Sequence[Tensor | None]) -> list[Tensor]:
        """The other side's tensors; `like` gives their shapes where a concatenation has to be cut."""
        count = len(self.ours if backward else self.theirs)
        if not self.pattern:
            if any(not same_bits(t, tensors[0]) for t in tensors[1:]):
                raise ValueError("tied entries must hold the same values")
            return [tensors[0]] * count
        if len(dtypes := {str(t.dtype) for t in tensors}) > 1:
            raise ValueError(f"merged entries must have one dtype, got {', '.join(sorted(dtypes))}")
        left, right = (side.strip() for side in self.pattern.split("->"))
        source, target = (right, left) if backward else (left, right)
        if "+" in source:
            return cut(tensors[0], source, target.split(","), like, self.sizes)
        if "+" in target:
            return [join(tensors, source.split(","), target, self.sizes)]
        whole = join_along(0, [x[None] for x in tensors]) if len(tensors) > 1 else tensors[0]
        lengths = dict(self.sizes)
        if count > 1:
            lengths[target.split()[0]] = count  # the stacking axis
        result = rearrange(whole, f"{source} -> {target}", **lengths)
        return list(result.unbind()) if count > 1 else [result]


@dataclass
class Group:
    """What a row matches with the same numbers in its holes; `found` names the tensors that are there, by position."""

    row: Row
    backward: bool
    holes: dict[str, str]
    found: dict[int, str] = field(default_factory=dict)

    def names(self, ours: bool) -> list[str]:
        return [name.fill(self.holes) for name in (self.row.ours if ours else self.row.theirs)]

    def absent(self) -> list[str]:
        """Of tied names one is enough."""
        return [x for n, x in enumerate(self.names(not self.backward)) if n not in self.found] if self.row.pattern else []

    def convert(self, get: Get, like: Tensors) -> dict[str, Tensor]:
        """The other side's tensors by name. Errors: `ValueError`."""
        names = self.names(self.backward)
        try:
            found = [get(name) for _, name in sorted(self.found.items())]
            result = self.row.convert(found, self.backward, [like.get(name) for name in names])
        except (ValueError, RuntimeError) as error:  # einops.EinopsError is a RuntimeError
            raise ValueError(f"{', '.join(self.names(not self.backward))} ({last_line(error)})") from error
        return dict(zip(names, result, strict=True))


def convert(groups: Iterable[Group], get: Get, like: Tensors) -> tuple[dict[str, Tensor], list[str]]:
    """What the complete ones give, and what cannot be converted."""
    result: dict[str, Tensor] = {}
    failed = []
    for group in groups:
        try:
            result |= {} if group.absent() else group.convert(get, like)
        except ValueError as error:
            failed.append(str(error))
    return result, failed


def alike(names: frozenset[str], groups: Iterable[Group], get: Get, like: Tensors) -> bool:
    """Whether the same bits go under all these names of ours."""
    sources = [group for group in groups if not names.isdisjoint(group.names(ours=True))] if len(names) > 1 else []
    found = [x for group in sources for name, x in group.convert(get, like).items() if name in names]
    return all(same_bits(found[0], x) for x in found[1:])


Indexed = tuple[int, int, Name]


def indexed(rows: Sequence[Row], backward: bool) -> tuple[dict[str, list[Indexed]], list[Indexed]]:
    """Names of one side with their row and position: those without holes by what they begin with, and the others."""
    by_beginning: dict[str, list[Indexed]] = {}
    others: list[Indexed] = []
    for r, row in enumerate(rows):
        for n, name in enumerate(row.theirs if backward else row.ours):
            (by_beginning.setdefault(name.template, []) if name.literal else others).append((r, n, name))
    return by_beginning, others


def axes(side: str) -> list[str]:
    return [axis for axis in re.findall(r"\w+", side) if axis != "1"]


def axis_lengths(part: str, size: Mapping[str, int]) -> list[int]:
    """'(q + kv) 1 i' -> [q + kv, 1, i]; a group without + is a product."""
    tokens = re.findall(r"\([^()]*\)|[^\s()]+", part)
    return [(sum if "+" in t else math.prod)(size[axis] for axis in axes(t)) for t in tokens]


def require_bijection(pattern: str, ours: int, theirs: int) -> None:
    """Each axis once on either side; several names need a stacking axis in front, or as many parts joined by +."""
    left, arrow, right = pattern.partition("->")
    names = [axes(left), axes(right)]
    joined = "+" in pattern  # the axes that the parts share occur in every part
    if not arrow or set(names[0]) != set(names[1]) or "..." in pattern:
        raise ValueError(f"pattern must have the same axes on both sides of '->', got {pattern!r}")
    for side, arity in ((left, ours), (right, theirs)):
        parts = len(side.split(","))
        if any(len(set(axes(p))) < len(axes(p)) for p in side.split(",")):
            raise ValueError(f"pattern must name each axis once, got {pattern!r}")
        if (parts != arity) if joined else (parts > 1 or (arity > 1 and side.strip().startswith("("))):
            raise ValueError(f"pattern must give {arity} tensors on the side {side.strip()!r}, got {pattern!r}")
        if joined and "+" in side and (side.count("(") != 1 or side.count("+") + 1 != max(ours, theirs)):
            raise ValueError(f"pattern must join {max(ours, theirs)} axes in one group (a + b), got {pattern!r}")


def part_patterns(group: str) -> tuple[list[str], int]:
    """'i (q + kv)' -> ['i q', 'i kv'] and the position of the joined axis, 1."""
    inner = group[group.index("(") + 1 : group.index(")")]
    before, after = group[: group.index("(")], group[group.index(")") + 1 :]
    return [f"{before}{name.strip()}{after}" for name in inner.split("+")], len(before.split())


def join(tensors: Sequence[Tensor], sources: Sequence[str], group: str, sizes: Mapping[str, int]) -> Tensor:
    targets, dim = part_patterns(group)
    moved = [rearrange(t, f"{s} -> {p}", **known(sizes, s)) for t, s, p in zip(tensors, sources, targets, strict=True)]
    return join_along(dim, moved)


def join_along(dim: int, tensors: list[Tensor]) -> Tensor:
    """As `torch.cat`, which on the meta device would import all of torch's compiler first."""
    if not tensors[0].is_meta:
        return torch.cat(tensors, dim)
    (first, *others), lengths = [(*x.shape[:dim], *x.shape[dim + 1 :]) for x in tensors], [x.shape[dim] for x in tensors]
    if any(shape != first for shape in others):
        raise ValueError(f"sizes must be the same but along axis {dim}, got {', '.join(str(tuple(x.shape)) for x in tensors)}")
    return tensors[0].new_empty((*first[:dim], sum(lengths), *first[dim:]))


def cut(
    whole: Tensor, group: str, targets: Sequence[str], like: Sequence[Tensor | None], sizes: Mapping[str, int]
) -> list[Tensor]:
    sources, dim = part_patterns(group)
    lengths: list[int | None] = []
    for source, target, example in zip(sources, targets, like, strict=True):
        axis = source.split()[dim]
        size = None if example is None else example.shape[target.split().index(axis)]
        lengths.append(sizes.get(axis, size))
    if lengths.count(None) > 1:
        raise ValueError(f"sizes must give the parts of {group!r}, got {dict(sizes)}")
    rest = whole.shape[dim] - sum(n for n in lengths if n is not None)
    parts = whole.split([rest if n is None else n for n in lengths], dim)
    return [rearrange(p, f"{s} -> {t}", **known(sizes, s)) for p, s, t in zip(parts, sources, targets, strict=True)]


def known(sizes: Mapping[str, int], side: str) -> dict[str, int]:
    return {axis: n for axis, n in sizes.items() if axis in axes(side)}


def same_bits(x: Tensor, y: Tensor) -> bool:
    """Equal shape, dtype and bits, which the meta device lacks; unlike `torch.equal`, NaN equals NaN and 0 differs from -0."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    if x is y or x.is_meta or y.is_meta:
        return True
    return torch.equal(*(t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (x, y)))


def last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
