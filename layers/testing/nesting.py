"""Inputs in tuples, lists and dicts: flat while they are drawn and changed, nested again when the block is called."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from layers.testing.drawing import Input


def parts(spec: Any) -> list[tuple[str, Any]]:
    """The parts of a nest, by key as it is written; none of what is an input or a value itself."""
    if isinstance(spec, (tuple, list)):
        found = [(f"[{i}]", value) for i, value in enumerate(spec)]
    elif isinstance(spec, Mapping):
        found = [(f".{key}", value) for key, value in spec.items()]
    elif dataclasses.is_dataclass(spec) and not isinstance(spec, (type, Input)):
        found = [(f".{field.name}", getattr(spec, field.name)) for field in dataclasses.fields(spec)]
    else:
        return []
    return found if any(isinstance(value, (Input, st.SearchStrategy)) or parts(value) for _, value in found) else []


def nests(specs: Mapping[str, Any]) -> bool:
    return any(parts(spec) for spec in specs.values())


def flattened(specs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs by flat names: ``{"state": (h, c)}`` gives ``{"state[0]": h, "state[1]": c}``."""
    result: dict[str, Any] = {}
    for name, spec in specs.items():
        nest = parts(spec)
        result |= flattened({f"{name}{key}": value for key, value in nest}) if nest else {name: spec}
    return result


def regrouped(inputs: dict[str, Any], specs: Mapping[str, Any]) -> dict[str, Any]:
    """The values as `specs` nests them. A value that already stands under the name of a nest is taken as it is."""
    nested = [name for name, spec in specs.items() if parts(spec)]
    if not nested:
        return inputs
    inside = {key for name in nested for key in flattened({name: specs[name]})}
    given = {name: inputs[name] if name in inputs else rebuilt(specs[name], name, inputs) for name in specs}
    return given | {name: value for name, value in inputs.items() if name not in inside}


def rebuilt(spec: Any, name: str, inputs: Mapping[str, Any]) -> Any:
    nest = parts(spec)
    if not nest:
        return inputs[name]
    values = [rebuilt(value, f"{name}{key}", inputs) for key, value in nest]
    if isinstance(spec, Mapping):
        return dict(zip(spec, values, strict=True))
    if isinstance(spec, (tuple, list)):
        return type(spec)(*values) if hasattr(spec, "_fields") else type(spec)(values)
    return type(spec)(**dict(zip((field.name for field in dataclasses.fields(spec)), values, strict=True)))
