"""JSON schemas, of which the OpenAPI description is made: what a request may hold, and what an answer has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from types import NoneType
from typing import Any, get_args, get_type_hints

from tasks.options import scalar

Schema = dict[str, Any]
KINDS = {str: "string", int: "integer", float: "number", bool: "boolean"}
BOUNDS = {"least": "minimum", "most": "maximum", "above": "exclusiveMinimum", "below": "exclusiveMaximum"}
LARGEST = 2**63 - 1


def text(most: int | None = None, **more: Any) -> Schema:
    return {"type": "string", **({} if most is None else {"maxLength": most}), **more}


def number(**more: Any) -> Schema:
    return {"type": "number", **more}


def integer(**more: Any) -> Schema:
    return {"type": "integer", **more}


def one_of(*values: Any) -> Schema:
    return {"enum": [*values]}


def either(*kinds: Schema) -> Schema:
    return {"anyOf": [*kinds]}


def listed(items: Schema, least: int | None = None, most: int | None = None, **more: Any) -> Schema:
    bounds = {"minItems": least, "maxItems": most}
    return {"type": "array", "items": items, **{name: bound for name, bound in bounds.items() if bound is not None}, **more}


def made_of(properties: dict[str, Schema], optional: Sequence[str] = (), **more: Any) -> Schema:
    """An object of these properties, and no others."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **more}


def by_class(classes: Sequence[str]) -> Schema:
    """A probability for each class, or for the likeliest."""
    return {"type": "object", "additionalProperties": number(minimum=0, maximum=1), "maxProperties": len(classes)}


def of_options(kind: type, names: Sequence[str]) -> dict[str, Schema]:
    """The schema of each option, from its type, its range and its help, which is what `tasks.options` checks."""
    hints, specs = get_type_hints(kind), {spec.name: spec for spec in fields(kind)}
    return {name: of_option(specs[name], hints[name]) for name in names}


def of_option(spec: Any, hint: Any) -> Schema:
    rules = spec.metadata
    bounds = {BOUNDS[name]: rules[name] for name in BOUNDS if rules[name] is not None}
    if scalar(hint) is int:
        bounds = {"minimum": -LARGEST, "maximum": LARGEST} | bounds
    found = {"type": KINDS[scalar(hint)], **bounds, "description": rules["help"]}
    if rules["choices"]:
        found["enum"] = [*rules["choices"]]
    if NoneType in get_args(hint):
        return {**either(found, {"type": "null"})}
    return found if spec.default is None else found | {"default": spec.default}
