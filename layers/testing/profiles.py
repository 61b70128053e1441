"""How many examples a property draws: hypothesis's profiles `dev`, `ci` and `thorough`, registered by importing this file."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings

QUICK = 3
"""Examples at most under ``-m quick``."""
CI = 20
THOROUGH = 200
"""Examples from which a run counts as thorough."""
COMMON: dict[str, Any] = dict(deadline=None, print_blob=True, suppress_health_check=list(HealthCheck), report_multiple_bugs=False)
"""One failure at a time: of a group of them pytest would show no message."""

settings.register_profile("dev", max_examples=8, **COMMON)
settings.register_profile("ci", max_examples=CI, derandomize=True, database=None, **COMMON)
settings.register_profile("thorough", max_examples=THOROUGH, **COMMON)
