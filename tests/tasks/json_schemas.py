"""What a JSON schema says of a value, as far as our descriptions use the language; an unknown word is an error."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda x: isinstance(x, dict),
    "array": lambda x: isinstance(x, list),
    "string": lambda x: isinstance(x, str),
    "integer": lambda x: isinstance(x, int) and not isinstance(x, bool),
    "number": lambda x: isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x),
    "boolean": lambda x: isinstance(x, bool),
    "null": lambda x: x is None,
}
SIZES = {"minLength": str, "maxLength": str, "minItems": list, "maxItems": list, "maxProperties": dict}
BOUNDS = {
    "minimum": lambda x, bound: x >= bound, "maximum": lambda x, bound: x <= bound,
    "exclusiveMinimum": lambda x, bound: x > bound, "exclusiveMaximum": lambda x, bound: x < bound,
}  # fmt: skip
WORDS = {"description", "default", "format", "contentEncoding", "contentMediaType"}


def fits(value: Any, schema: dict[str, Any]) -> bool:
    return not list(misfits(value, schema))


def misfits(value: Any, schema: dict[str, Any], where: str = "") -> Iterator[str]:
    """What is wrong with it."""
    for word, rule in schema.items():
        if word == "type" and not TYPES[rule](value):
            yield f"{where} is no {rule}: {value!r}"
        elif word == "enum" and value not in rule:
            yield f"{where} is none of {rule}: {value!r}"
        elif word == "const" and value != rule:
            yield f"{where} is not {rule!r}: {value!r}"
        elif word == "anyOf" and not any(fits(value, one) for one in rule):
            yield f"{where} is none of what it may be: {value!r}"
        elif word == "pattern" and isinstance(value, str) and not re.search(rule, value):
            yield f"{where} is not like {rule}: {value!r}"
        elif word in SIZES and isinstance(value, SIZES[word]):
            if len(value) < rule if word.startswith("min") else len(value) > rule:
                yield f"{where} has {word} {rule}: {value!r}"
        elif word in BOUNDS and TYPES["number"](value) and not BOUNDS[word](value, rule):
            yield f"{where} has {word} {rule}: {value!r}"
        elif word == "items" and isinstance(value, list):
            for n, one in enumerate(value):
                yield from misfits(one, rule, f"{where}[{n}]")
        elif word == "required" and isinstance(value, dict):
            yield from (f"{where} lacks {name}" for name in rule if name not in value)
        elif word in ("properties", "additionalProperties") and isinstance(value, dict):
            yield from misfitting(value, schema, word, where)
        elif word not in {"type", "enum", "const", "anyOf", "pattern", "items", "required", "properties",
                          "additionalProperties", *SIZES, *BOUNDS, *WORDS}:  # fmt: skip
            raise ValueError(f"{word} is no word of a schema that is known here")


def misfitting(value: dict[str, Any], schema: dict[str, Any], word: str, where: str) -> Iterator[str]:
    named = schema.get("properties", {})
    for name, one in value.items():
        if word == "properties" and name in named:
            yield from misfits(one, named[name], f"{where}.{name}")
        elif word == "additionalProperties" and name not in named:
            if schema[word] is False:
                yield f"{where} has {name}, which is not known"
            else:
                yield from misfits(one, schema[word], f"{where}.{name}")
