"""Weight maps: one table of names, read in both directions.

    BERT_LAYER = WeightMap(
        ("layers.{i}.norm", "encoder.layer.{i}.LayerNorm"),                          # a module: weight, bias, ... ride along
        ("layers.{i}.up.weight", "h.{i}.c_fc.weight", "o i -> i o"),                 # one tensor, transposed
        ("q.weight k.weight v.weight", "in_proj_weight", "qkv o i -> (qkv o) i"),    # three of equal shape, stacked
        ("q.weight kv.weight", "attn.weight", "q i, kv i -> (q + kv) i"),            # unequal ones, concatenated
        ("embedding.weight", "embed.weight lm_head.weight"),                         # one tensor under two names (tied)
        constants={"position_ids": torch.arange(512)[None]},                         # only they have it
    )
    BERT_LAYER.load(ours, theirs.state_dict())
    theirs.load_state_dict(BERT_LAYER.export(ours), strict=True)

A row is *(ours, theirs)* or *(ours, theirs, pattern)* or *(ours, theirs, pattern, sizes)*. `{i}` stands for a number. An einops
pattern without repeated, lost or reduced axes is a bijection, so every row converts both ways and a round trip keeps every bit.
Of tied names an import needs one, as files hold them, and an export writes all; those that are there must hold the same bits.
`sizes` gives axis lengths that the pattern cannot infer, such as the number of heads.

Differs from `torch.nn.Module.load_state_dict(strict=True)` in that all problems are found before the first value is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

Tensors = Mapping[str, Tensor]


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


Fixed = list[tuple[Name, Tensor]]


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
        whole = torch.stack(list(tensors)) if len(tensors) > 1 else tensors[0]
        lengths = dict(self.sizes)
        if count > 1:
            lengths[target.split()[0]] = count  # the stacking axis
        result = rearrange(whole, f"{source} -> {target}", **lengths)
        return list(result.unbind()) if count > 1 else [result]


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
    return torch.cat(moved, dim)


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
    """Equal shape, dtype and bits; unlike `torch.equal`, NaN equals NaN and 0 differs from -0."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    return x is y or torch.equal(*(t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (x, y)))


def exact(source: torch.dtype, target: torch.dtype) -> bool:
    """Whether every value survives the copy: the same dtype, or a wider one of the same kind."""
    kinds = [(t.is_floating_point, t.is_complex) for t in (source, target)]
    return source == target or (kinds[0] == kinds[1] and torch.promote_types(source, target) == target)


def last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()


def listed(problem: str, names: Iterable[str]) -> list[str]:
    names = sorted(set(names))
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return [f"{problem}: {', '.join(names[:20])}{more}"] if names else []


def refuse(problems: list[str]) -> None:
    if problems:
        raise ValueError("weights do not fit; " + "; ".join(problems))


def named(name: str, fixed: Fixed) -> bool:
    return any(template.match(name) is not None for template, _ in fixed)


Place = tuple[int, int, Name]


def indexed(rows: Sequence[Row], backward: bool) -> tuple[dict[str, list[Place]], list[Place]]:
    """Names of one side with their row and position: those without holes by what they begin with, and the others."""
    by_beginning: dict[str, list[Place]] = {}
    others: list[Place] = []
    for r, row in enumerate(rows):
        for n, name in enumerate(row.theirs if backward else row.ours):
            (by_beginning.setdefault(name.template, []) if name.literal else others).append((r, n, name))
    return by_beginning, others


def filled(fixed: Fixed, holes: list[dict[str, str]]) -> dict[str, Tensor]:
    """Every such tensor under every name that the holes of the converted rows give."""
    return {
        template.fill({hole: values[hole] for hole in template.holes}): value.clone()
        for template, value in fixed
        for values in [{}, *holes]
        if set(template.holes) <= values.keys()
    }


class WeightMap:
    """A bijection between two ways of naming and laying out the same tensors; see the head of this file.

    rows:      *(ours, theirs[, pattern[, sizes]])*; several names on one side, separated by spaces, are stacked or joined by the
               pattern, and without one are the same tensor under several names, of which one has to be there.
    constants: their names (holes allowed) -> the tensor that stands there in every export and must stand there in every import.
    derived:   the same for tables that the module computes itself: an import may lack them, and does not look at them.
    Errors:    `ValueError` that lists all names that are unmapped, missing, of a wrong shape or dtype, or claimed by two rows.
    """

    def __init__(self, *rows: Sequence[Any], constants: Tensors | None = None, derived: Tensors | None = None) -> None:
        self.rows = [Row.parse(*row) for row in rows]
        self.index = {backward: indexed(self.rows, backward) for backward in (False, True)}
        self.constants, self.derived = (
            [(Name(template, prefix=False), value) for template, value in (given or {}).items()] for given in (constants, derived)
        )

    def to_theirs(self, tensors: Tensors, strict: bool = True) -> dict[str, Tensor]:
        """Our names to theirs. strict=False skips incomplete rows and constants (for gradients)."""
        result, holes, problems = self._convert(tensors, backward=False, like={})
        if strict:
            fixed = filled(self.constants + self.derived, holes)
            refuse(problems + listed("claimed by a row and a constant", result.keys() & fixed.keys()))
            result |= fixed
        return result

    def to_ours(self, tensors: Tensors, like: Tensors | None = None, strict: bool = True) -> dict[str, Tensor]:
        """Their names to ours. `like`, our state dict, gives the sizes of unequal parts."""
        result, problems = self._to_ours(tensors, like or {})
        if strict:
            refuse(problems)
        return result

    def _to_ours(self, tensors: Tensors, like: Tensors) -> tuple[dict[str, Tensor], list[str]]:
        fixed = {k: v for k, v in tensors.items() if named(k, self.constants)}
        rest = {k: v for k, v in tensors.items() if k not in fixed and not named(k, self.derived)}
        result, holes, problems = self._convert(rest, backward=True, like=like)
        expected = filled(self.constants, holes)
        wrong = [k for k in fixed.keys() & expected.keys() if not same_bits(fixed[k], expected[k])]
        problems += listed("missing constants", expected.keys() - fixed.keys()) + listed("not the constant", wrong)
        return result, problems + listed("unmapped", fixed.keys() - expected.keys())

    def export(self, module: nn.Module) -> dict[str, Tensor]:
        """The module's state under their names, ready for `load_state_dict(..., strict=True)`."""
        return self.to_theirs({k: v.detach() for k, v in module.state_dict().items()})

    def load(self, module: nn.Module, theirs: Tensors) -> None:
        """Copy their state into the module. Nothing is written unless all of it fits; a wider dtype may take a narrower one."""
        state = module.state_dict()
        ours, problems = self._to_ours(theirs, state)
        both = ours.keys() & state.keys()
        shapes = [f"{k} {tuple(ours[k].shape)} for {tuple(state[k].shape)}" for k in both if ours[k].shape != state[k].shape]
        dtypes = [f"{k} {ours[k].dtype} for {state[k].dtype}" for k in both if not exact(ours[k].dtype, state[k].dtype)]
        refuse(
            problems
            + listed("missing", state.keys() - ours.keys())
            + listed("not in the module", ours.keys() - state.keys())
            + listed("wrong shape", shapes)
            + listed("would lose precision", dtypes)
            + listed("without values (meta device)", [k for k in both if ours[k].is_meta or state[k].is_meta])
        )
        own = {t.untyped_storage().data_ptr() for t in state.values()}  # a module may be loaded from itself, entries swapped
        ours = {k: v.clone() if v.untyped_storage().data_ptr() in own else v for k, v in ours.items()}
        with torch.no_grad():
            for key, value in ours.items():
                state[key].copy_(value)

    def _convert(
        self, tensors: Tensors, backward: bool, like: Tensors
    ) -> tuple[dict[str, Tensor], list[dict[str, str]], list[str]]:
        """Group the names by row, holes and rest; convert each whole group; collect what is wrong."""
        groups: dict[tuple[int, tuple], dict[int, Tensor]] = {}
        unmapped, ambiguous, missing, failed = [], [], [], []
        for key, tensor in tensors.items():
            by_beginning, others = self.index[backward]
            parts = key.split(".")
            near = [place for end in range(len(parts)) for place in by_beginning.get(".".join(parts[: end + 1]), ())]
            claims = [(r, n, values) for r, n, name in (*near, *others) if (values := name.match(key)) is not None]
            if not claims:
                unmapped.append(key)
            elif len(claims) > 1:
                ambiguous.append(key)
            else:
                row, position, values = claims[0]
                groups.setdefault((row, values), {})[position] = tensor
        result: dict[str, Tensor] = {}
        for (r, values), found in groups.items():
            row, filled = self.rows[r], dict(values)
            source, target = (row.theirs, row.ours) if backward else (row.ours, row.theirs)
            absent = [name.fill(filled) for n, name in enumerate(source) if n not in found]
            if absent and row.pattern:  # of tied names one is enough
                missing += absent
                continue
            names = [name.fill(filled) for name in target]
            try:
                converted = row.convert([found[n] for n in sorted(found)], backward, [like.get(n) for n in names])
            except (ValueError, RuntimeError) as error:  # einops.EinopsError is a RuntimeError
                failed.append(f"{', '.join(name.fill(filled) for name in source)} ({last_line(error)})")
                continue
            clash = [name for name in names if name in result]
            ambiguous += clash
            result.update(zip(names, converted, strict=True))
        problems = listed("unmapped", unmapped) + listed("claimed by two rows", ambiguous) + listed("missing", missing)
        return result, [dict(values) for _, values in groups], problems + listed("cannot convert", failed)
