"""The contract kit: state once what a block promises, and have it proven over drawn configurations.

    attention = Contract(MultiHeadAttention, arguments=dict(heads=st.integers(1, 4), ...), inputs=..., outputs=..., twins=[...])

at the top level of a test module becomes one test a property: `pytest -k backward`, `pytest path::MultiHeadAttention::export`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layers.testing.claims import (
        causal,
        exercised,
        influence,
        initial_distribution,
        permutation_equivariant,
        seeded,
        shift_equivariant,
    )
    from layers.testing.contract import Case, Contract, KnownFailure, Twin
    from layers.testing.drawing import Function, Input, fill, generator, mask, part, tensor, tokens
    from layers.testing.equality import Mismatch, leaves, require_equal
    from layers.testing.properties import GENERIC, Property
    from layers.testing.sequences import cache_consistent, padding_invariant, streaming
    from layers.testing.twins import like
    from layers.testing.verdicts import Inapplicable, Vacuous

__all__ = [
    "GENERIC",
    "Case",
    "Contract",
    "Function",
    "Inapplicable",
    "Input",
    "KnownFailure",
    "Mismatch",
    "Property",
    "Twin",
    "Vacuous",
    "cache_consistent",
    "causal",
    "exercised",
    "fill",
    "generator",
    "influence",
    "initial_distribution",
    "leaves",
    "like",
    "mask",
    "padding_invariant",
    "part",
    "permutation_equivariant",
    "require_equal",
    "seeded",
    "shift_equivariant",
    "streaming",
    "tensor",
    "tokens",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: pytest loads `layers.testing.plugin` in every session, which must not import torch."""
    if name in __all__:
        homes = (
            ("twins",) if name == "like" else ("properties", "claims", "sequences", "contract", "drawing", "equality", "verdicts")
        )
        for home in homes:
            if hasattr(module := import_module(f"layers.testing.{home}"), name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
