"""What processes send to each other in a step of GPT, in bytes and seconds: the tables of docs/many-processes.md.

    python bench/collectives.py                          the tables, for the links and the speed below
    python bench/collectives.py --rate 2e14 --between 25 for GPUs that compute 2e14 operations a second, 25 GB/s between machines
    python bench/collectives.py --measure --device cuda  the rate of this machine, from steps of GPT of 124 M, to give as --rate

Parameters are counted from the models of the zoo, on the meta device.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

import zoo
from zoo.gpt import gpt2, llama
from zoo.model import without_values

SHORT, LONG = 2, 4
"""Bytes of a number in bfloat16 and in float32."""
GPUS = (8, 16, 64, 128, 512)


@dataclass(frozen=True)
class Size:
    """blocks, others: parameters within blocks, gathered in bfloat16, and outside of them, gathered in float32."""

    name: str
    blocks: int
    others: int
    layers: int
    dim: int

    @property
    def all(self) -> int:
        return self.blocks + self.others


def sizes() -> list[Size]:
    with without_values():
        models = {
            "124 M": gpt2(50257),
            "1.3 B": gpt2(50257, dim=2048, heads=16, layers=24, max_positions=2048),
            "7 B": llama(32000, dim=4096, heads=32, layers=32, hidden_dim=11008),
        }
    found = []
    for name, model in models.items():
        blocks = sum(p.numel() for p in model.decoder.parameters())
        others = sum(p.numel() for p in model.parameters()) - blocks
        dim = model.embedding.table.embedding_dim
        found.append(Size(name, blocks, others, len(model.decoder), dim))
    return found


def all_reduce(size: float, n: int) -> float:
    """Bytes that each of n processes sends, by a ring: the sum of slices goes around, and then the slices."""
    return 2 * size * (n - 1) / n


def gather(size: float, n: int) -> float:
    """The same of an all-gather, or of a reduce-scatter."""
    return size * (n - 1) / n


def ddp(size: Size, n: int) -> float:
    return all_reduce(LONG * size.all, n)


def fsdp(size: Size, n: int) -> float:
    """Weights twice, for the way there and back, but for what is outside of blocks, and gradients once."""
    weights = 2 * SHORT * size.blocks + LONG * size.others
    return gather(weights + LONG * size.all, n)


def tensor(size: Size, n: int, tokens: int) -> float:
    """Two sums a part forward and backward together, two parts a block, over all tokens that the group sees."""
    return 4 * size.layers * all_reduce(SHORT * tokens * size.dim, n)


def link(n: int, options: argparse.Namespace) -> float:
    """Bytes a second of the slowest link of a ring of n GPUs, each of which has its own."""
    return 1e9 * (options.within if n <= options.node else options.between)


def seconds(sent: float, n: int, rounds: int, options: argparse.Namespace) -> float:
    """rounds: how often something goes around the ring, once for a gather and twice for a sum that all get."""
    return sent / link(n, options) + rounds * (n - 1) * options.latency * 1e-6


def compute(size: Size, options: argparse.Namespace) -> float:
    """Six operations a parameter and token: two forward, four backward."""
    return 6 * size.all * options.tokens / options.rate


def memory(size: Size, n: int) -> tuple[float, float]:
    """Bytes of weights, gradients and AdamW's two means by DDP, and by FSDP with two blocks gathered, and the rest."""
    return 16.0 * size.all, 16 * size.all / n + 2 * SHORT * size.blocks / size.layers + LONG * size.others


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = [*head]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] + ["---:"] * (len(head) - 1), *rows])


def tables(options: argparse.Namespace) -> str:
    rows, parts = [], []
    for size in sizes():
        for n in GPUS:
            there = compute(size, options)
            sent = {"ddp": (ddp(size, n), 2), "fsdp": (fsdp(size, n), 3 * (size.layers + 1))}
            took = {name: seconds(x, n, rounds, options) for name, (x, rounds) in sent.items()}
            most = [f"{x / 1e9:,.1f}" for x in memory(size, n)]
            told = [f"{sent[name][0] / 1e9:.2f} GB, {took[name] * 1e3:,.0f} ms" for name in sent]
            rows.append([size.name, f"{n}", f"{there * 1e3:,.0f} ms", *told, f"{most[0]} / {most[1]} GB"])
        for n in (2, 4, 8):
            sent_by_one = tensor(size, n, options.tokens * n)
            took_by_one = seconds(sent_by_one, n, 8 * size.layers, options)
            parts.append([size.name, f"{n}", f"{sent_by_one / 1e9:.2f} GB", f"{took_by_one * 1e3:,.0f} ms"])
    head = ("GPT", "GPUs", "computing", "DDP", "FSDP2", "state of a GPU, DDP / FSDP2")
    return f"{table(head, rows)}\n\n{table(('GPT', '--tensor', 'sent', 'seconds'), parts)}\n"


def measure(device: str, rows: int = 1, length: int = 512, steps: int = 3) -> float:
    """Operations a second, counted as `compute` does, of the best of some steps of GPT of 124 M; bfloat16 on a GPU."""
    model = zoo.create("gpt2", dropout=0.0).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.randint(50257, (rows, length + 1), device=device)
    took = []
    for _ in range(steps + 1):
        begun = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            logits = model(tokens[:, :-1])
        F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - begun)
    return 6 * sum(p.numel() for p in model.parameters()) * rows * length / min(took[1:])


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192, help="that each GPU computes in a step")
    parser.add_argument("--rate", type=float, default=4e14, help="operations a second of a GPU: 40 %% of an H100's 989e12")
    parser.add_argument("--within", type=float, default=450, help="GB/s of a GPU's link within a machine: NVLink of an H100")
    parser.add_argument("--between", type=float, default=50, help="GB/s of a GPU's link between machines: 400 Gbit/s each")
    parser.add_argument("--latency", type=float, default=5, help="microseconds of one hop of a ring")
    parser.add_argument("--node", type=int, default=8, help="GPUs of a machine")
    parser.add_argument("--measure", action="store_true", help="the rate of this machine")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    return parser.parse_args(words)


def main() -> int:
    options = parsed()
    if not options.measure:
        print(tables(options), end="")
        return 0
    rate = measure(options.device, 8 if options.device == "cuda" else 1)
    print(f"{rate:.3g} operations a second, torch {torch.__version__}, {torch.get_num_threads()} threads")
    return 0


if __name__ == "__main__":
    sys.exit(main())
