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

Differs from `torch.nn.Module.load_state_dict(strict=True)` in that all problems are found before the first value is written, and
in that tensors may be `Stored` in files: they are checked by their headers and then read one row after another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from layers.weight_rows import Get, Group, Name, Row, Tensors, alike, convert, indexed, same_bits

Fixed = list[tuple[Name, Tensor]]


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. like: its shape and dtype, on the meta device. read: gives it in memory that nobody else holds."""

    like: Tensor
    read: Callable[[], Tensor]


Source = Mapping[str, Tensor | Stored]


def headers(tensors: Source) -> dict[str, Tensor]:
    """Shapes and dtypes, as tensors on the meta device."""
    return {name: x.like if isinstance(x, Stored) else x.detach().to("meta") for name, x in tensors.items()}


def exact(source: torch.dtype, target: torch.dtype) -> bool:
    """Whether every value survives the copy: the same dtype, or a wider one of the same kind."""
    kinds = [(t.is_floating_point, t.is_complex) for t in (source, target)]
    return source == target or (kinds[0] == kinds[1] and torch.promote_types(source, target) == target)


def listed(problem: str, names: Iterable[str]) -> list[str]:
    names = sorted(set(names))
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return [f"{problem}: {', '.join(names[:20])}{more}"] if names else []


def refuse(problems: list[str]) -> None:
    if problems:
        raise ValueError("weights do not fit; " + "; ".join(problems))


def storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def owned(x: Tensor, dtype: torch.dtype, held: set[int]) -> Tensor:
    """x on the default device, in memory that nothing else has a part of; `held` are the storages that others have."""
    x = x.to(torch.get_default_device(), dtype)
    if not x.is_contiguous() or x.untyped_storage().nbytes() > x.nbytes or storage(x) in held:
        x = x.clone(memory_format=torch.contiguous_format)
    held.add(storage(x))
    return x


@dataclass
class Place:
    """A parameter or buffer, and every registry of a module in which it stands under a key."""

    tensor: Tensor
    names: set[str] = field(default_factory=set)
    registries: list[tuple[dict[str, Any], str]] = field(default_factory=list)

    def put(self, x: Tensor) -> None:
        old = self.tensor
        self.tensor = nn.Parameter(x, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else x
        for registry, key in self.registries:
            registry[key] = self.tensor


def places_of(module: nn.Module) -> dict[str, Place]:
    """Every name of a tensor in the module -> its place; the names of a tied one have the same."""
    places: dict[int, Place] = {}
    result = {}
    for path, part in module.named_modules(remove_duplicate=False):
        for registry in (part._parameters, part._buffers):
            for key, x in registry.items():
                if x is not None:
                    name = f"{path}.{key}" if path else key
                    result[name] = place = places.setdefault(id(x), Place(x))
                    place.names.add(name)
                    place.registries.append((registry, key))
    return result


def named(name: str, fixed: Fixed) -> bool:
    return any(template.match(name) is not None for template, _ in fixed)


def filled(fixed: Fixed, groups: Iterable[Group]) -> dict[str, Tensor]:
    """Every such tensor under every name that the holes of the groups give."""
    return {
        template.fill({hole: holes[hole] for hole in template.holes}): value
        for template, value in fixed
        for holes in [{}, *(group.holes for group in groups)]
        if set(template.holes) <= holes.keys()
    }


def require_alike(groups: Sequence[Group], constants: Tensors, tied: Iterable[frozenset[str]], get: Get, like: Tensors) -> None:
    """Errors: `ValueError` if constants, or tied tensors of theirs or ours, have other values. Of theirs the first is kept."""
    several = [group for group in groups if not group.row.pattern and len(group.found) > 1]
    refuse(differing(constants, get) + listed("cannot convert", convert(several, get, like)[1]))
    refuse(listed("tied, of different values", chain(*(names for names in set(tied) if not alike(names, groups, get, like)))))
    for group in several:
        group.found = dict([min(group.found.items())])


def differing(constants: Tensors, get: Get) -> list[str]:
    return listed("not the constant", [name for name, value in constants.items() if not same_bits(get(name), value)])


class WeightMap:
    """A bijection between two ways of naming and laying out the same tensors; see the head of this file.

    rows:      *(ours, theirs[, pattern[, sizes]])*; several names on one side, separated by spaces, are stacked or joined by the
               pattern, and without one are the same tensor under several names, of which one has to be there.
    constants: their names (holes allowed) -> the tensor that stands there in every export and must stand there in every import.
    derived:   the same for tables that the module computes itself: an import may lack them, and does not look at them.
    own:       our names (holes allowed) of what they lack, such as a saved table of ours: neither exported nor imported.
    Errors:    `ValueError` that lists all names that are unmapped, missing, of a wrong shape or dtype, or claimed by two rows.
    """

    def __init__(
        self, *rows: Sequence[Any], constants: Tensors | None = None, derived: Tensors | None = None, own: Sequence[str] = ()
    ) -> None:
        self.rows = [Row.parse(*row) for row in rows]
        self.index = {backward: indexed(self.rows, backward) for backward in (False, True)}
        self.constants, self.derived = (
            [(Name(template, prefix=False), value) for template, value in (given or {}).items()] for given in (constants, derived)
        )
        self.own = [Name(template, prefix=False) for template in own]

    def shared(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Those of ours that they have too."""
        return {k: x for k, x in tensors.items() if not any(name.match(k) is not None for name in self.own)}

    def to_theirs(self, tensors: Tensors, strict: bool = True) -> dict[str, Tensor]:
        """Our names to theirs. strict=False skips incomplete rows and constants (for gradients)."""
        groups, problems = self._groups(self.shared(tensors), backward=False)
        result, failed = convert(groups, tensors.__getitem__, like={})
        if strict:
            fixed = filled(self.constants + self.derived, groups)
            problems += listed("cannot convert", failed)
            refuse(problems + listed("claimed by a row and a constant", result.keys() & fixed.keys()))
            result |= {name: value.clone() for name, value in fixed.items()}
        return result

    def to_ours(self, tensors: Tensors, like: Tensors | None = None, strict: bool = True) -> dict[str, Tensor]:
        """Their names to ours. `like`, our state dict, gives the sizes of unequal parts."""
        groups, constants, problems = self._imported(tensors)
        result, failed = convert(groups, tensors.__getitem__, like or {})
        if strict:
            refuse(problems + listed("cannot convert", failed) + differing(constants, tensors.__getitem__))
        return result

    def export(self, module: nn.Module) -> dict[str, Tensor]:
        """The module's state under their names, ready for `load_state_dict(..., strict=True)`."""
        return self.to_theirs({k: v.detach() for k, v in module.state_dict().items()})

    def load(self, module: nn.Module, theirs: Source) -> None:
        """Put their state into the module. Nothing is written unless all of it fits; a wider dtype may take a narrower one.

        What the module has on the meta device gets values, in memory of its own on the default device; a tied tensor stays one.
        """
        state, places = module.state_dict(), places_of(module)
        own = {storage(x) for x in state.values()}  # a module may be loaded from itself, entries swapped
        theirs = {k: x.clone() if isinstance(x, Tensor) and storage(x) in own else x for k, x in theirs.items()}
        held = {storage(x) for x in theirs.values() if isinstance(x, Tensor)}

        def get(name: str) -> Tensor:
            return x.read() if isinstance(x := theirs[name], Stored) else x.detach()

        with torch.no_grad():
            for group in self._fitting(state, places, theirs, get):
                found = group.convert(get, state)
                for name in [*found]:
                    x = found.pop(name)
                    if not state[name].is_meta:
                        state[name].copy_(x)
                    elif (place := places[name]).tensor.is_meta:
                        place.put(owned(x, place.tensor.dtype, held))
                    del x  # before the next group is read

    def _fitting(self, state: Tensors, places: Mapping[str, Place], theirs: Source, get: Get) -> list[Group]:
        """Groups in the order to read them. Errors: `ValueError` unless all of them, and nothing else, fit the state."""
        known = headers(theirs)
        groups, constants, problems = self._imported(known)
        ours, failed = convert(groups, known.__getitem__, state)
        both = ours.keys() & state.keys()
        tied = {name: frozenset(places[name].names & both) for name in state.keys() & places.keys()}
        shapes = [f"{k} {tuple(ours[k].shape)} for {tuple(state[k].shape)}" for k in both if ours[k].shape != state[k].shape]
        dtypes = [f"{k} {ours[k].dtype} for {state[k].dtype}" for k in both if not exact(ours[k].dtype, state[k].dtype)]
        bare = [k for k, x in theirs.items() if isinstance(x, Tensor) and x.is_meta]
        bare += [k for k, place in places.items() if place.tensor.is_meta and k not in state]
        bare += [k for k, x in state.items() if x.is_meta and k not in places]
        refuse(
            problems
            + listed("cannot convert", failed)
            + differing(constants, known.__getitem__)
            + listed("missing", [k for k in self.shared(state) if k not in ours and not tied.get(k)])
            + listed("not in the module", ours.keys() - state.keys())
            + listed("wrong shape", shapes)
            + listed("would lose precision", dtypes)
            + listed("without values (meta device)", bare)
        )
        require_alike(groups, constants, tied.values(), get, state)
        # a large tensor that is in memory twice, as read and as converted, does no harm while the others are not there
        return sorted(groups, key=lambda group: -sum(known[name].nbytes for name in group.found.values()))

    def _imported(self, tensors: Tensors) -> tuple[list[Group], dict[str, Tensor], list[str]]:
        """Groups, what constants among the tensors must be, and problems."""
        fixed = {k for k in tensors if named(k, self.constants)}
        groups, problems = self._groups([k for k in tensors if k not in fixed and not named(k, self.derived)], backward=True)
        expected = filled(self.constants, groups)
        problems += listed("missing constants", expected.keys() - fixed) + listed("unmapped", fixed - expected.keys())
        return groups, {k: v for k, v in expected.items() if k in fixed}, problems

    def _groups(self, names: Iterable[str], backward: bool) -> tuple[list[Group], list[str]]:
        """The names by row, holes and rest, and problems."""
        groups: dict[tuple[int, tuple], Group] = {}
        unmapped, ambiguous = [], []
        by_beginning, others = self.index[backward]
        for key in names:
            parts = key.split(".")
            near = [place for end in range(len(parts)) for place in by_beginning.get(".".join(parts[: end + 1]), ())]
            claims = [(r, n, holes) for r, n, name in (*near, *others) if (holes := name.match(key)) is not None]
            if len(claims) == 1:
                row, position, holes = claims[0]
                groups.setdefault((row, holes), Group(self.rows[row], backward, dict(holes))).found[position] = key
            else:
                (ambiguous if claims else unmapped).append(key)
        missing = [name for group in groups.values() for name in group.absent()]
        given = Counter(name for group in groups.values() if not group.absent() for name in group.names(backward))
        ambiguous += [name for name, times in given.items() if times > 1]
        problems = listed("unmapped", unmapped) + listed("claimed by two rows", ambiguous) + listed("missing", missing)
        return [*groups.values()], problems
