"""What a step frees, the next step finds again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tasks.memory import keep_freed_memory

STEPS = """
import ctypes, resource, sys
from tasks.memory import keep_freed_memory

libc, size = ctypes.CDLL(None), 20 * 2**20
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]

def step():
    blocks = [libc.malloc(size) for _ in range(3)]
    for block in blocks:
        libc.memset(block, 1, size)
    for block in blocks:
        libc.free(block)

if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
VARIABLES = {"MALLOC_TRIM_THRESHOLD_": "1", "MALLOC_MMAP_THRESHOLD_": "1", "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1"}


@pytest.fixture(autouse=True)
def unchosen(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_steps_find_the_memory_of_the_step_before():
    """Pages that the system has to clear anew, of 600 megabytes that ten steps fill: 153,600 without, or 300 of 2 megabytes."""

    def cleared(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True).stdout)

    if (without := cleared("as it is")) < 300:
        pytest.skip(f"this glibc gives little back: {without} pages")
    assert cleared("kept") < without / 10


def test_elsewhere_nothing_changes(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False


@pytest.mark.parametrize("name", VARIABLES)
def test_what_a_user_has_chosen_stays(name, monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr("ctypes.CDLL", lambda _: pytest.fail("it was changed"))
    monkeypatch.setenv(name, VARIABLES[name])
    assert keep_freed_memory() is False
