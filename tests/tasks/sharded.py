"""Toy runs of language models for several processes, and their twin: one process that adds up the same micro-batches by hand."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from layers.lora import add_lora
from tasks.data import epoch_order, seed_of
from tasks.engine import Run
from tasks.optimizers import learning_rate, make_optimizer
from tasks.options import EngineOptions
from tasks.task import Metric, Split, Task

SIZES = {"vocab_size": 11, "dim": 32, "heads": 2, "layers": 2, "max_positions": 9}
BASE = {"device": "cpu", "warmup": 0, "epochs": 2, "accumulate": 2, "lr": 0.01, "tracker": "none"}
CASES: dict[str, dict[str, Any]] = {
    "tied": {"dtype": torch.float32, "dropout": 0.3, "ema": 0.9},
    "frozen": {"dtype": torch.float64, "dropout": 0.3, "lora": True},
    "unused": {"dtype": torch.float64, "dropout": 0.3, "spare": True},
    "clipped": {"dtype": torch.float64, "dropout": 0.0, "clip": 0.1, "gradient_checkpointing": True},
    "muon": {"dtype": torch.float64, "dropout": 0.0, "optimizer": "muon"},
    "sgd": {"dtype": torch.float64, "dropout": 0.3, "optimizer": "sgd"},
    "short": {"dtype": torch.float32, "dropout": 0.0, "precision": "bf16"},
}


class Texts(Task):
    """Drawn tokens (b, 7), of which some have no label: examples count differently. Batches of 4, 4 and 3."""

    unit = "texts"
    primary = Metric("loss", lower_is_better=True)

    def __init__(self, size: int = 11) -> None:
        draw = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(0, 11, (size + 5, 8), generator=draw)
        self.hidden = torch.rand(size + 5, 7, generator=draw) < 0.3
        self.train = Split(size, lambda epoch: epoch_order(size, 0, epoch).split(4), lambda i, epoch: self.examples(i))
        self.valid = Split(5, lambda epoch: torch.arange(5).split(3), lambda i, epoch: self.examples(i + size))

    def examples(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.tokens[indices, :-1], self.tokens[indices, 1:].masked_fill(self.hidden[indices], -100)

    def units(self, batch: Any) -> int:
        return int((batch[1] != -100).sum())

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        logits, labels = model(batch[0]), batch[1]
        hits = ((logits.argmax(-1) == labels) & (labels != -100)).sum()
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"), {"accuracy": hits}

    def score(self, model: Any) -> dict[str, float]:
        """Five tokens, decoded with a cache, as one number."""
        with torch.no_grad():
            caches, token, found = model.new_caches(9), torch.tensor([[1]]), 0
            for _ in range(5):
                token = model.next_logits(token, caches).argmax(-1)[:, None]
                found = 11 * found + int(token)
        return {"tokens": found}


def model_of(dtype: torch.dtype = torch.float64, dropout: float = 0.0, lora: bool = False, spare: bool = False, **_: Any) -> Any:
    torch.manual_seed(0)
    model = zoo.create("gpt_small", **SIZES, dropout=dropout).to(dtype)
    if lora:
        add_lora(model, 2, dropout=0.2)
        model.positions.requires_grad_(True)
    if spare:
        model.spare = nn.Linear(3, 5, dtype=dtype)
        model.decoder[0].spare = nn.Linear(3, 5, dtype=dtype)
    return model


def given(case: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**BASE, **{name: value for name, value in case.items() if name not in ("dtype", "dropout", "lora", "spare")}, **more}


def options_of(case: dict[str, Any], **more: Any) -> EngineOptions:
    return EngineOptions(**given(case, **more))


def batches() -> list[Tensor]:
    return [indices for epoch in range(2) for indices in Texts().train.batches(epoch)]


def twin(case: dict[str, Any], world: int) -> nn.Module:
    """What `world` processes have to give, in one: each one's gradients by themselves, then their sum."""
    model, task, options = model_of(**case), Texts(), options_of(case)
    optimizer = make_optimizer(model, options)
    for step, indices in enumerate(batches()):
        units, summed = task.units(task.examples(indices)), [None] * len(list(model.parameters()))
        for rank in range(world):
            for k, micro in enumerate(indices.tensor_split(options.accumulate)):
                torch.manual_seed(seed_of("step", options.seed, step, k, rank))
                loss, _ = task.loss(model.train(), task.examples(micro.tensor_split(world)[rank]))
                (loss * (world / units)).backward()
            own = [p.grad for p in model.parameters()]
            summed = [b if a is None else a if b is None else a + b for a, b in zip(summed, own, strict=True)]
            optimizer.zero_grad()
        for p, gradient in zip(model.parameters(), summed, strict=True):
            p.grad = None if gradient is None else gradient / world
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(options, step, 3)
        if options.clip:
            nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimizer.step()
        optimizer.zero_grad()
    return model


def run_of(name: str, folder: Path, **more: Any) -> Run:
    """Six steps of a case, an evaluation, a checkpoint."""
    case = CASES[name]
    AcceleratorState._reset_state()  # of another precision
    run = Run(Texts(), model_of(**case), options_of(case, **more), folder)
    rows = [run.train_step(indices) for indices in batches()]
    run.sums = {f"step {n + 1}": row for n, row in enumerate(rows)} | {"evaluation": run.evaluate()}
    if run.main:
        folder.mkdir(parents=True, exist_ok=True)
    run.save()
    return run


def main(words: list[str]) -> int:
    """``steps FOLDER OPTION=VALUE ... -- CASE ...`` or ``fit FOLDER OPTION=VALUE ...``, where it was stopped if it was."""
    what, folder, *more = words
    words = [word for word in more if "=" not in word]
    options: dict[str, Any] = dict(word.split("=") for word in more if "=" in word)
    options["tensor"] = int(options.get("tensor", 1))
    if what == "steps":
        for name in words:
            run_of(name, Path(folder) / name, **options)
        return ended(Path(folder))
    Path(folder).mkdir(parents=True, exist_ok=True)
    case = {**CASES["frozen"], "dropout": float(options.pop("dropout", 0.3)), "lora": False, "ema": 0.9}
    run = Run(Texts(), model_of(**case), options_of(case, checkpoint_every=2, epochs=3, **options), Path(folder))
    run.restore()
    run.fit()
    return ended(Path(folder))


def ended(folder: Path) -> int:
    """Once all have said so, without taking the groups down, which torch 2.6 can hang in: who leaves first breaks connections."""
    world = int(os.environ.get("WORLD_SIZE", 1))  # a main process that has ended its training knows no group any more
    if world > 1:
        (folder / f"ended-{os.environ['RANK']}").touch()
        while len([*folder.glob("ended-*")]) < world:
            time.sleep(0.01)
        os._exit(0)
    return 0
