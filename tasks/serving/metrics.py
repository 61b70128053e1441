"""What a server counts, in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate

HELP = {
    "requests_total": ("counter", "Requests, by model and status; status 499 is a client that went away."),
    "request_seconds": ("histogram", "Seconds from the first byte of a request to its answer."),
    "batches_total": ("counter", "Batches that were computed."),
    "batch_items_total": ("counter", "Inputs in all batches, or steps of texts that are being written."),
    "batch_seconds_total": ("counter", "Seconds that batches took to compute."),
    "waiting": ("gauge", "Inputs that wait for a batch."),
}
Row = tuple[tuple[str, tuple[tuple[str, str], ...]], float]
"""A name, its labels, and the value."""
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Sums by name and labels. Only the event loop writes and reads them."""

    def __init__(self) -> None:
        self.sums: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        self.times: dict[str, list[int]] = {}
        """Of a model, requests that took up to each of `BOUNDS` and more than the one before, and those beyond."""

    def add(self, name: str, value: float = 1, **labels: str) -> None:
        self.sums[name, tuple(labels.items())] += value  # type: ignore

    def batch(self, model: str, size: int, seconds: float) -> None:
        for name, value in (("batches_total", 1), ("batch_items_total", size), ("batch_seconds_total", seconds)):
            self.add(name, value, model=model)

    def request(self, model: str, status: int, seconds: float) -> None:
        self.add("requests_total", model=model, status=str(status))
        self.add("request_seconds_sum", seconds, model=model)
        self.times.setdefault(model, [0] * (len(BOUNDS) + 1))[bisect_left(BOUNDS, seconds)] += 1

    def text(self, waiting: dict[str, int]) -> str:
        """waiting: the gauge, by model."""
        rows: list[Row] = [*self.sums.items()]
        for model, counts in self.times.items():
            sums = [*accumulate(counts)]
            rows += [((name, (("model", model), *more)), n) for name, more, n in (
                ("request_seconds_count", (), sums[-1]),
                *(("request_seconds_bucket", (("le", str(le)),), n) for le, n in zip((*BOUNDS, "+Inf"), sums, strict=True)),
            )]  # fmt: skip
        rows += [(("waiting", (("model", name),)), n) for name, n in waiting.items()]
        return "".join(lines(rows))


def lines(rows: list[Row]) -> Iterator[str]:
    for family, (kind, text) in HELP.items():
        ours = [row for row in rows if row[0][0].removesuffix("_sum").removesuffix("_count").removesuffix("_bucket") == family]
        if ours:
            yield f"# HELP zooproof_{family} {text}\n# TYPE zooproof_{family} {kind}\n"
        for (name, labels), value in ours:
            inner = ",".join(f'{key}="{escaped(label)}"' for key, label in labels)
            yield f"zooproof_{name}{{{inner}}} {value:.12g}\n"


def escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
