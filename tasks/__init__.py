"""Thin runners: each takes data and a model by name, trains it with `tasks.engine`, and leaves a run folder."""

from importlib.util import find_spec
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent

for _name in ("layers", "zoo"):
    _spec = find_spec(_name)
    _found = Path(_spec.origin).resolve() if _spec and _spec.origin else None
    if _found is None or _found.parent.parent != HOME:
        _hiding = _found or (list(_spec.submodule_search_locations or []) if _spec else "nothing: it is not installed")
        raise ImportError(
            f"zooproof's package {_name!r} is hidden by {_hiding}: "
            f"rename that one, or run from another folder (ours is {HOME / _name})"
        )
