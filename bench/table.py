"""The tables of speed: what was measured is kept in `bench/results.json`, what a page shows of it stands in `bench/tables.toml`.

    pytest bench --benchmark-json=out.json
    python bench/table.py out.json          prints the run as a Markdown table
    python bench/table.py out.json --keep   adds it to bench/results.json too; then `python docs/pages.py` renews the pages

A table of tables.toml has a processor, a number of threads, a head, columns and rows. A column says which value of a benchmark
is shown ("ours", "reference", "ratio" or another one that the benchmark keeps) and then the benchmark's name, in which * stands
for what the row says; where it has no *, its own words stand for the row's *. The newest run of that processor with so many
threads (`OMP_NUM_THREADS`) that has the benchmark counts. Results have times in seconds, or words where only a range is known;
their `note` goes behind the row's name, until a newer run is shown.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS, TABLES = HERE / "results.json", HERE / "tables.toml"
IN_SECONDS = 1.1
"""A row with a time of so many seconds or more is shown in seconds, others in milliseconds."""

Result = dict[str, Any]
Run = dict[str, Any]


# ---------------------------------------------------------------------------------------------------------------- show


def table(name: str) -> Iterator[str]:
    """Lines of this table: by which commands and when, and its rows."""
    layout, used, lines = tables()[name], [], []
    for title, row in layout["rows"]:
        cells, notes = [], []
        for _, specs in layout["columns"]:
            found = []
            for value, benchmark in asked(specs, row):
                run, result = newest(benchmark, layout)
                found.append(shown(value, result))
                notes.append(result.get("note", ""))
                used += [run] if result else []
            cells.append(" and ".join(dict.fromkeys(filter(None, found))))
        lines.append(f"| {title}{next(filter(None, notes), '')} | {' | '.join(cells)} |")
    if not used:
        raise ValueError(f"{name}: no run on {machine(layout)}, has any of its benchmarks")
    yield told(used) + "\n"
    yield f"| {layout['head']} | {' | '.join(heading for heading, _ in layout['columns'])} |"
    yield "| --- |" + " --- |" * len(layout["columns"])
    yield from lines


def earlier() -> Iterator[str]:
    """All results that no table shows, the newest first."""
    inside, names = set(), {}
    for layout in tables().values():
        for (title, row), (heading, specs) in product(layout["rows"], layout["columns"]):
            for _, benchmark in asked(specs, row):
                inside.add((id(newest(benchmark, layout)[0]), benchmark))
                words = [word for word in (layout["head"], title, heading) if word not in ("", "ours", "ratio")]
                names.setdefault(benchmark, ", ".join(words))
    yield from ["| what | processor | when | ours | reference | ratio |", "| --- | --- | --- | --- | --- | --- |"]
    for run in reversed(runs()):
        for benchmark, result in run["results"].items():
            if (id(run), benchmark) not in inside:
                what = names.get(benchmark, f"`{benchmark}`") + result.get("note", "")
                when = run.get("version") or day(run["date"])
                cells = " | ".join(shown(value, result) for value in ("ours", "reference", "ratio"))
                yield f"| {what} | {machine(run)} | {when} | {cells} |"


def asked(specs: str | list[str], row: str) -> Iterator[tuple[str, str]]:
    """(value, benchmark) of a cell."""
    for spec in [specs] if isinstance(specs, str) else specs:
        value, _, pattern = spec.partition(" ")
        yield value, pattern.replace("*", row) if "*" in pattern else row.replace("*", pattern)


def newest(benchmark: str, layout: dict[str, Any]) -> tuple[Run, Result]:
    """The last run on the table's processor, with as many threads, that has the benchmark, and what it has; or nothing."""
    for run in reversed(runs()):
        if benchmark in run["results"] and machine(layout) == machine(run):
            return run, run["results"][benchmark]
    return {}, {}


def shown(value: str, result: Result) -> str:
    found = result.get(value, "")
    if isinstance(found, str):
        return found
    if value == "ratio":
        return f"{found:.2f}" if found < 5 else f"{found:.1f}" if found < 10 else f"{found:.0f}"
    if value == "noise":
        return f"{100 * found:.1f} %"
    if result.get("unit") == "MiB":
        return f"{found:.1f} MiB"
    times = [result[side] for side in ("ours", "reference") if not isinstance(result.get(side, ""), str)]
    if max(times) >= IN_SECONDS:
        return f"{found:.2f} s"
    return f"{1000 * found:.3g} ms" if found < 0.1 else f"{1000 * found:.0f} ms"


def machine(of: dict[str, Any]) -> str:
    """Of a run, or of a table."""
    return f"{of['processor']}, {threads(of)}"


def threads(of: dict[str, Any]) -> str:
    return f"{of['threads']} thread{'s' * (of['threads'] != 1)}"


def told(used: list[Run]) -> str:
    """By what and when these were measured."""
    commands = " and ".join(
        dict.fromkeys(run["command"] if run["command"] == "by hand" else f"by `{run['command']}`" for run in used)
    )
    torches = " and ".join(dict.fromkeys(run["torch"] for run in used))
    days = sorted({run["date"] for run in used})
    return (
        f"Measured {commands}, torch {torches}, {threads(used[0])}, {' to '.join(map(day, dict.fromkeys((days[0], days[-1]))))}:"
    )


def day(text: str) -> str:
    found = date.fromisoformat(text)
    return f"{found.day} {found:%B %Y}"


# ---------------------------------------------------------------------------------------------------------------- keep


def tables() -> dict[str, Any]:
    return tomllib.loads(TABLES.read_text(encoding="utf-8"))


_read: dict[bytes, list[Run]] = {}


def runs() -> list[Run]:
    """In the order in which they were added."""
    data = RESULTS.read_bytes()
    if data not in _read:
        _read.clear()
        _read[data] = json.loads(data)
    return _read[data]


def kept(found: dict[str, Any], threads: int, torch: str, gpu: str = "") -> Run:
    """A file of pytest-benchmark's as a run."""
    results = {entry["fullname"]: entry["extra_info"] for entry in found["benchmarks"]}
    files = " ".join(dict.fromkeys(f"bench/{name.partition('::')[0]}" for name in results))
    about = dict(date=found["datetime"][:10], processor=processor(found["machine_info"]["cpu"]), torch=torch, threads=threads)
    return about | ({"gpu": gpu} if gpu else {}) | dict(command=f"pytest {files}", results=results)


def processor(cpu: dict[str, Any]) -> str:
    """As tables.toml calls it: two processors of the same make differ most in AVX-512."""
    brand = cpu.get("brand_raw", "CPU")
    if "EPYC" in brand:
        return f"AMD EPYC {'with' if 'avx512f' in cpu.get('flags', ()) else 'without'} AVX-512"
    return "Intel Xeon" if "Xeon" in brand else brand


def text(all_runs: list[Run]) -> str:
    """JSON with a line for each result, so that a change of one is a line."""
    parts = []
    for run in all_runs:
        head = json.dumps({key: value for key, value in run.items() if key != "results"}, ensure_ascii=False)
        lines = (f"  {json.dumps(name)}: {json.dumps(result, ensure_ascii=False)}" for name, result in run["results"].items())
        parts.append(f'{head[:-1]}, "results": {{\n' + ",\n".join(lines) + "\n}}")
    return "[\n" + ",\n".join(parts) + "\n]\n"


def rows(run: Run) -> list[str]:
    """One run as it is."""
    about = [run["processor"], *([run["gpu"]] if "gpu" in run else []), threads(run), f"torch {run['torch']}"]
    lines = [f"Measured on {', '.join(about)}.", "", "| benchmark | ours | reference | ratio |", "| --- | --- | --- | --- |"]
    for name, result in run["results"].items():
        values = [shown(side, result) for side in ("ours", "reference")]
        lines.append(f"| {name.partition('::')[2]} | {values[0]} | {values[1]} | {result['ratio']:.3f} |")
    return lines


def main(file: str, *options: str) -> None:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    version = ".".join(torch.__version__.split(".")[:2])
    found = json.loads(Path(file).read_text(encoding="utf-8"))
    run = kept(found, found["machine_info"]["threads"], version, gpu)
    print("\n".join(rows(run)))
    if options == ("--keep",):
        RESULTS.write_text(text([*runs(), run]), encoding="utf-8")
        print("\nKept in bench/results.json: now `python docs/pages.py` renews the pages.")
    elif options:
        raise SystemExit(f"error: options={options}; there is only --keep")


if __name__ == "__main__":
    main(*sys.argv[1:])
