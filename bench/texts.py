"""Texts written together against texts written one by one: tokens a second, and whether any of them is another.

    python bench/texts.py runs/NAME

runs/NAME is a run of text generation. Clients ask for texts of drawn prompts, lengths and seeds, every third of them greedy: once
of a server that takes one text at a time (--max_batch 1), then of one that lets them share the calls of the model. Rounding may
make a text another one where two tokens are all but equally likely; it is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from serve import ROOT, Client

PROMPTS = ("def main(", "import ", "class Message:\n    def ", "", "# " + "the " * 20, "return self.")


def drawn(number: int) -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [
        {"prompt": draw.choice(PROMPTS), "max_new_tokens": draw.randint(10, 80), "seed": n, "greedy": n % 3 == 0}
        for n in range(number)
    ]


async def written(port: int, name: str, asked: list[dict[str, Any]], clients: int) -> tuple[dict[int, Any], float]:
    """The answers by number, and seconds."""
    found: dict[int, Any] = {}
    waiting = iter(enumerate(asked))

    async def client() -> None:
        async with Client(port, f"/v1/models/{name}/predict") as one:
            for n, body in waiting:
                status, answer = await one.ask(json.dumps({"inputs": [body]}).encode())
                found[n] = json.loads(answer)["outputs"][0] if status == 200 else status

    start = perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return found, perf_counter() - start


def measured(run: Path, batch: int, asked: list[dict[str, Any]], clients: int) -> tuple[dict[int, Any], float]:
    words = [sys.executable, "-m", "tasks.serve", str(run), "--port", "0", "--device", "cpu", "--max_batch", str(batch)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as server:
        try:
            port = int(server.stdout.readline().rpartition(":")[2])  # type: ignore
            asyncio.run(written(port, run.name, asked[:4], 4))
            return asyncio.run(written(port, run.name, asked, clients))
        finally:
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--clients", type=int, default=16)
    given = parser.parse_args()
    asked, run = drawn(given.texts), Path(given.run).resolve()
    answers = []
    for batch in (1, 16):
        found, seconds = measured(run, batch, asked, given.clients)
        answers.append(found)
        tokens = sum(one["tokens"] for one in found.values() if isinstance(one, dict))
        failed = sum(not isinstance(one, dict) for one in found.values())
        print(
            f"{batch:2} at a time: {tokens:,} tokens in {seconds:.1f} s, {tokens / seconds:.0f} a second, failed {failed}",
            flush=True,
        )
    for what, third in (("greedy", True), ("drawn", False)):
        numbers = [n for n in range(given.texts) if (n % 3 == 0) is third]
        print(f"{what}: {sum(answers[0][n] != answers[1][n] for n in numbers)} of {len(numbers)} texts are others")


if __name__ == "__main__":
    main()
