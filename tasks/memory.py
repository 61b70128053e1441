"""Memory that a step frees is kept for the next one."""

from __future__ import annotations

import ctypes
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of malloc.h."""
KEPT, LARGE = 2**30, 2**25
"""Bytes that stay with the process after they are freed, at most, and of what is large enough to go back at once."""


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed, up to a gigabyte. False where there is no glibc.

    It gives memory back when much is free at once, which is so after every step. The next step then meets thousands of pages that
    the system has to clear first. No number depends on it.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return all([libc.mallopt(MMAP_THRESHOLD, LARGE), libc.mallopt(TRIM_THRESHOLD, KEPT)])
