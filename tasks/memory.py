"""Memory that a step frees is kept for the next one."""

from __future__ import annotations

import ctypes
import os
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of malloc.h."""
KEPT = 2**30
"""Bytes that may lie free at the end of an arena, where the next ones would be taken from, before they go back to the system.

No bound on what a process keeps: there are several arenas, and what is free between used blocks stays in any case.
"""
LARGE = 2**25
"""Bytes from which on a block is the system's own: it goes back as soon as it is freed."""
CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
"""Variables of the environment by which a user chooses these."""


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed. False where there is no glibc, or where the user has chosen.

    It gives memory back when much is free at once, which is so after every step. The next step then meets thousands of pages that
    the system has to clear first. No number depends on it.
    """
    tuned = os.environ.get("GLIBC_TUNABLES", "")
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in CHOSEN) or "_threshold=" in tuned:
        return False
    libc = ctypes.CDLL(None)
    return all([libc.mallopt(MMAP_THRESHOLD, LARGE), libc.mallopt(TRIM_THRESHOLD, KEPT)])
