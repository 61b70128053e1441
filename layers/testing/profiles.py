"""How many examples a property draws: hypothesis's profiles `dev`, `few`, `ci` and `thorough`, registered by this import."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings

DEV = 8
"""Examples where no profile is asked for."""
QUICK = 3
"""Examples at most under ``-m quick``."""
CI = 20
THOROUGH = 200
"""Examples from which a run counts as thorough."""
COMMON: dict[str, Any] = dict(deadline=None, print_blob=True, suppress_health_check=list(HealthCheck), report_multiple_bugs=False)
"""One failure at a time: of a group of them pytest would show no message."""

settings.register_profile("dev", max_examples=DEV, **COMMON)
settings.register_profile("few", max_examples=DEV, derandomize=True, database=None, **COMMON)
settings.register_profile("ci", max_examples=CI, derandomize=True, database=None, **COMMON)
settings.register_profile("thorough", max_examples=THOROUGH, **COMMON)


def budget() -> int:
    """Examples of a property that costs 1: those of the profile, and of none (hypothesis's own default) those of `dev`."""
    asked = settings.default.max_examples if settings.default else DEV
    return DEV if getattr(settings, "_current_profile", "") == "default" else asked
