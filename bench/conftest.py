"""Ours and the reference in one run, turn and turn about, so that whatever else the machine does hits both."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info):
    """`bench/table.py` keeps it, perhaps with other threads of its own."""
    machine_info["threads"] = torch.get_num_threads()


@pytest.fixture
def side_by_side(benchmark) -> Callable[..., None]:
    """``side_by_side(ours, reference, rounds)`` times both in turn; the quickest of each and their ratio go into `extra_info`.

    settle: pause before every call, and make one more that is not timed, because the threads of some libraries spin on for 0.2 s
            after their work and would slow down the other side.
    """

    def run(
        ours: Callable[[], Any], reference: Callable[[], Any], rounds: int, device: str = "cpu", settle: bool = False
    ) -> None:
        synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None

        def settled(call: Callable[[], Any]) -> None:
            if settle:
                time.sleep(0.3)
                call()
            synchronise()

        def timed(call: Callable[[], Any]) -> float:
            settled(call)
            begun = time.perf_counter()
            call()
            synchronise()
            return time.perf_counter() - begun

        def finished() -> None:
            ours()
            synchronise()

        def turn() -> None:
            times.append(timed(reference))
            settled(ours)

        timed(ours)
        timed(reference)
        times: list[float] = []
        benchmark.pedantic(finished, setup=turn, rounds=rounds)
        record(benchmark, benchmark.stats.stats.min, min(times), "s")

    return run


@pytest.fixture
def compare_memory(benchmark) -> Callable[..., None]:
    """``compare_memory(ours, reference)``: peak bytes of tensors that each call allocates above what was there before."""

    def run(ours: Callable[[], Any], reference: Callable[[], Any], device: str = "cpu") -> None:
        peaks = []
        for call in (ours, reference):
            call()
            peaks.append(peak_memory(call, device))
        benchmark.pedantic(ours, rounds=1)
        record(benchmark, *peaks, "MiB")

    return run


def record(benchmark: Any, ours: float, reference: float, unit: str) -> None:
    benchmark.extra_info.update(ours=ours, reference=reference, unit=unit, ratio=ours / reference)


def peak_memory(call: Callable[[], Any], device: str) -> float:
    """MiB. On the CPU every allocation and release that torch's profiler sees is added up, which repeats exactly."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(str(Path(folder) / "trace.json"))
        events = json.loads((Path(folder) / "trace.json").read_text(errors="replace"))["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak / 2**20
