"""Docstrings are plain text that is laid out by hand: the site shows them so."""

from __future__ import annotations

from typing import Any

from griffe import Extension


class Plain(Extension):
    def on_instance(self, *, obj: Any, **_: Any) -> None:
        if not obj.is_alias and obj.docstring is not None:
            obj.docstring.value = f"```text\n{obj.docstring.value}\n```"
