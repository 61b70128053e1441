"""How quality falls with fewer steps: Frechet distances by sampler, and images that came out of the same noise, as a picture.

    python bench/steps.py runs/NAME docs/steps.png

The run is one of `tasks.image_generation` that takes noise away: flow, ddpm or dit. It is measured as `evaluate` measures it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import torch

from tasks import image_generation_use as use
from tasks import sheets
from tasks.generation_task import MEASURED
from tasks.judge import Judge, judge_folder, spread
from zoo.generation.samplers import SAMPLERS

matplotlib.use("Agg")
from matplotlib import pyplot

STEPS = (1, 2, 3, 5, 10, 20, 50)
SHOWN = 10
"""Images a row."""


def main(run: str, path: str) -> None:
    found = use.Loaded(use.EvaluateOptions(runs_dir=str(Path(run).parent), name=Path(run).name))
    trained, data = use.training_data(found.folder)
    name = use.trained_on(found.folder).get("judge", "")
    judge = Judge(judge_folder(found.folder.parent, name, trained.data, data.image_size), data)
    chosen = spread(len(data.train), MEASURED)
    labels, real = data.train.labels[chosen], judge.look(data.train.pixels[chosen])
    noise = found.noise(len(chosen), 0)
    first = torch.stack([(labels == n).nonzero()[0, 0] for n in range(min(SHOWN, len(data.classes)))])
    flow = found.generator.schedule == "flow"
    samplers = [name for name in SAMPLERS if not flow or name in ("euler", "heun", "dpm++")]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), width_ratios=(3, 4), layout="constrained")
    rows = []
    for sampler in samplers:
        times, distances = [], []
        for steps in STEPS:
            found.generator = replace(found.generator, sampler=sampler, steps=steps)
            images = found.pictures(noise, labels if found.classes else None, 0)
            measured = judge.measure(real, images, labels)
            times.append(2 * steps - 1 if sampler == "heun" else steps)
            distances.append(measured["frechet_distance"])
            told = f"{distances[-1]:.3f}, accuracy {measured['accuracy']:.3f}"
            print(f"{sampler}, {steps} steps, {times[-1]} evaluations: {told}", flush=True)
            rows += [images[first]] if sampler == samplers[0] else []
        left.loglog(times, distances, marker="o", label=sampler)
    left.set(xlabel="evaluations of the network", ylabel="Frechet distance", title="the same noise, other samplers")
    left.legend()
    right.imshow(sheets.grid(rows).permute(1, 2, 0).squeeze(-1), cmap="gray")
    right.set(title=f"the same noise after so many steps, {samplers[0]}", xticks=[])
    height = sheets.grid(rows).shape[1] / len(rows)
    right.set_yticks([height * (n + 0.5) for n in range(len(rows))], labels=[str(n) for n in STEPS])
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
