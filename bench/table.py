"""Print the Markdown table of ratios: ``pytest bench --benchmark-json=out.json && python bench/table.py out.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch


def rows(results: dict[str, Any]) -> list[str]:
    lines = ["| what | case | ours | reference | ratio |", "| --- | --- | --- | --- | --- |"]
    for entry in results["benchmarks"]:
        info = entry["extra_info"]
        case = entry["name"].partition("[")[2].rstrip("]").replace("-infer", "").replace("-train step", "")
        values = [
            f"{info[side] * 1000:.1f} ms" if info["unit"] == "s" else f"{info[side]:.1f} MiB" for side in ("ours", "reference")
        ]
        lines.append(f"| {entry['group']} | {case} | {values[0]} | {values[1]} | {info['ratio']:.3f} |")
    return lines


def machine(results: dict[str, Any]) -> str:
    cpu = results["machine_info"]["cpu"]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu.get('brand_raw', 'CPU')}, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__.partition('+')[0]}"


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text())
    print("\n".join([f"Measured on {machine(found)}.", "", *rows(found)]))
