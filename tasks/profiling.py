"""Where the time of training goes: a trace of torch's profiler, and a table of the ten blocks that take most of it.

Every operation counts for the innermost module in whose forward pass it was called; an operation of the backward pass for that of
the operation that it belongs to, which torch's autograd tells by a common number. What belongs to no module is the loss, the
optimizer, the data, or Python between them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function, schedule

WARMUP = 2
"""Steps before those that are measured, of the first of which much is not seen again."""
MOST = 10
MARK = "block: "
STEP = "step"


class Row(NamedTuple):
    """Seconds a step of one block, without those of the blocks in it."""

    name: str
    kind: str
    forward: float
    backward: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


class Profile:
    """``with profile.step(): ...`` around every step, ``profile.end()`` at the end of a run; then both files are there.

    folder: gets trace.json, for chrome://tracing or ui.perfetto.dev, and profile.txt, the table, which is printed too.
    """

    def __init__(self, model: nn.Module, folder: Path, steps: int) -> None:
        self.folder, self.steps, self.left = folder, steps, WARMUP + steps
        self.kinds = {name or "model": type(module).__name__ for name, module in model.named_modules()}
        self.inside = False
        self.hooks = [hook for name, module in model.named_modules() for hook in self.watched(module, MARK + (name or "model"))]
        self.on_gpu = any(p.is_cuda for p in model.parameters())
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.on_gpu else [])]
        self.profiler = profile(activities=activities, schedule=schedule(wait=0, warmup=WARMUP, active=steps, repeat=1))

    @contextmanager
    def step(self) -> Iterator[None]:
        if not self.left:
            yield
            return
        if self.left == WARMUP + self.steps:
            self.profiler.start()
        self.inside = True
        try:
            with record_function(STEP):
                yield
        finally:
            self.inside = False
        self.left -= 1
        if self.left:
            self.profiler.step()
        else:
            self.write()

    def end(self) -> None:
        """Of a run with fewer steps, what there is."""
        begun, done = self.left < WARMUP + self.steps, self.steps - self.left
        if not self.left:
            return
        self.left = 0
        if done > 0:
            self.steps = done
            self.write()
        else:
            self.stop(begun)
            print(f"--profile: the run ended in the {WARMUP} steps before those that are measured")

    def stop(self, begun: bool = True) -> None:
        if begun:
            self.profiler.stop()
        for hook in self.hooks:
            hook.remove()

    def write(self) -> None:
        self.stop()
        self.profiler.export_chrome_trace(str(self.folder / "trace.json"))
        text = table(*measured(self.profiler.events(), self.kinds, self.steps, self.on_gpu))
        (self.folder / "profile.txt").write_text(text)
        print(text, end="", flush=True)

    def watched(self, module: nn.Module, name: str) -> Iterator[Any]:
        """Hooks that mark the module's forward pass in the trace, but for those between steps, of an evaluation."""
        ranges: list[Any] = []

        def begin(module: nn.Module, args: Any) -> None:
            if self.inside:
                ranges.append(record_function(name))
                ranges[-1].__enter__()

        def end(module: nn.Module, args: Any, output: Any) -> None:
            if ranges:
                ranges.pop().__exit__(None, None, None)

        yield module.register_forward_pre_hook(begin)
        yield module.register_forward_hook(end, always_call=True)


def measured(events: Any, kinds: dict[str, str], steps: int, on_gpu: bool = False) -> tuple[list[Row], float]:
    """Rows of all blocks, the most costly first, and the seconds of a step."""
    time = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    forward: dict[str, float] = defaultdict(float)
    backward: dict[str, float] = defaultdict(float)
    owners: dict[int, str] = {}
    whole = 0.0
    late = []
    for event in events:
        if event.name == STEP:
            whole += event.cpu_time_total / 1e6
            continue
        owner, of_backward = owner_of(event)
        if of_backward is not None:
            late.append((event, of_backward))
            continue
        if event.sequence_nr >= 0:  # what has none, such as the adding up of gradients, belongs to no operation
            owners[event.sequence_nr] = owner  # of several the last one, for those before it took no part in gradients
        if owner:
            forward[owner] += getattr(event, time) / 1e6
    for event, number in late:
        if owner := owners.get(number, ""):
            backward[owner] += getattr(event, time) / 1e6
    rows = [Row(name, kinds.get(name, ""), forward[name] / steps, backward[name] / steps) for name in {*forward, *backward}]
    return sorted(rows, key=lambda row: (-row.total, row.name)), whole / steps


def owner_of(event: Any) -> tuple[str, int | None]:
    """The block in whose forward pass an operation was called, and of one of the backward pass the number of its operation."""
    while event is not None:
        if event.name.startswith(MARK):
            return event.name.removeprefix(MARK), None
        if event.name.startswith("autograd::engine::evaluate_function"):
            return "", event.sequence_nr
        event = event.cpu_parent
    return "", None


def table(rows: list[Row], whole: float) -> str:
    """The ten most costly blocks, in milliseconds a step and parts of it, and what is left."""
    most, width = rows[:MOST], max([len("loss, optimizer, Python"), *(len(f"{row.name} ({row.kind})") for row in rows[:MOST])])
    blocks, others = sum(row.total for row in rows), rows[MOST:]

    def line(name: str, forward: str, backward: str, part: str) -> str:
        return f"{name:{width}}  {forward:>9}  {backward:>9}  {part:>6}\n"

    def numbers(name: str, forward: float, backward: float) -> str:
        part = (forward + backward) / whole if whole else 0.0
        return line(name, f"{forward * 1000:.2f}", f"{backward * 1000:.2f}", f"{part:.1%}")

    text = line("milliseconds a step", "forward", "backward", "part")
    for row in most:
        text += numbers(f"{row.name} ({row.kind})", row.forward, row.backward)
    if others:
        text += numbers("all other blocks", sum(row.forward for row in others), sum(row.backward for row in others))
    text += line("loss, optimizer, Python", "", "", f"{max(0.0, 1 - blocks / whole) if whole else 0.0:.1%}")
    return text + line("a step", f"{whole * 1000:.2f}", "", "")
