"""Kills one of two processes under torchrun with SIGKILL, many times, and holds each run that goes on against an unbroken one.

    python bench/restarts.py            ten kills, of a process and at a moment that are drawn
    python bench/restarts.py --kills 3 --shard none

TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is set: without it, the processes of a restart read addresses of those that are gone.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from zoo import files

ROOT = Path(__file__).parents[1]
TEXT = ["the cat sat on the mat", "a dog ran to the cat", "def f(x): return x + 1", "one two three four five"]


def started(folder: Path, name: str, shard: str) -> subprocess.Popen[bytes]:
    words = f"""-m torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 1 -m tasks.text_generation train
        --train {folder}/text --runs_dir {folder} --name {name} --model gpt_small --dim 24 --layers 2 --context 32
        --vocab_size 300 --dropout 0.1 --epochs 4 --batch_size 4 --accumulate 2 --checkpoint_every 2 --device cpu
        --tracker none --shard {shard}"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen([sys.executable, *words.split()], cwd=ROOT, env=environment, stdout=log, stderr=log)


def workers(agent: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]


def killed(folder: Path, name: str, shard: str, draw: random.Random, seconds: float, limit: float) -> bool:
    """Whether a run of which a process was killed came to its end; seconds: how long it trains, at most."""
    agent, victim, delay = started(folder, name, shard), draw.randint(0, 1), draw.uniform(0, seconds)
    end = time.monotonic() + limit
    while not (folder / name / "options.json").exists() and agent.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(delay)
    found = workers(agent.pid) if agent.poll() is None else []
    if len(found) == 2:
        os.kill(found[victim], signal.SIGKILL)
        print(f"{name}: process {victim} killed {delay:.2f} s after the run began", end=", ", flush=True)
    else:
        print(f"{name}: nothing left to kill after {delay:.2f} s", end=", ", flush=True)
    try:
        return agent.wait(max(1.0, end - time.monotonic())) == 0 and len(found) == 2
    except subprocess.TimeoutExpired:
        for pid in [*workers(agent.pid), agent.pid]:
            os.kill(pid, signal.SIGKILL)
        agent.wait()
        return False


def same(one: Path, other: Path) -> bool:
    a, b = (files.read_tensors(folder / "last.safetensors") for folder in (one, other))
    return a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--shard", default="fsdp", choices=("none", "fsdp"))
    parser.add_argument("--seed", type=int, default=0, help="of victims and moments")
    parser.add_argument("--limit", type=float, default=300, help="seconds until a run counts as hung")
    options = parser.parse_args()
    draw, good = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "text").mkdir()
        for n in range(60):
            (folder / "text" / f"{n}.txt").write_text("\n".join(TEXT[(n + k) % 4] for k in range(5)) + f"\n{n}\n")
        if started(folder, "unbroken", options.shard).wait() != 0:
            print((folder / "unbroken.log").read_text())
            return 1
        seconds = files.read_json(folder / "unbroken" / "summary.json")["seconds"]
        for n in range(options.kills):
            begun = time.monotonic()
            ended = killed(folder, f"kill-{n + 1}", options.shard, draw, 0.8 * seconds, options.limit)
            resumed = ended and same(folder / "unbroken", folder / f"kill-{n + 1}")
            good += resumed
            print(f"{'to the same bits' if resumed else 'LOST'}, {time.monotonic() - begun:.0f} s", flush=True)
            if not resumed:
                print((folder / f"kill-{n + 1}.log").read_text()[-3000:])
    print(f"{good} of {options.kills} resumed, torch {torch.__version__}, --shard {options.shard}")
    return 0 if good == options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
