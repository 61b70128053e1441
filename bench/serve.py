"""Load on a server, with faults beside it: failures, wrong answers, latency against the model's own time, memory.

    python bench/serve.py runs/digits --requests 10000
    python bench/serve.py runs/digits --seconds 600 --faults

Each client asks for the same input again and again, and holds each answer against the first. With --faults others send malformed
bodies and heads, and leave before their answer. A number of clients that do not keep the server busy is `--clients 2`.
What is wrong is printed, and the exit code is 1. Memory is the server's resident set: before the load, after a minute of it if it
lasts that long, and at its end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).resolve().parents[1]
BAD = (b"", b"{", b'{"inputs": [NaN]}', b'{"inputs": [1]}', b"\xff" * 99, b'{"inputs": []}')


class Client:
    """A connection that is kept, without a library between it and the server."""

    def __init__(self, port: int, path: str) -> None:
        self.port, self.path = port, path

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.writer.close()

    def send(self, body: bytes) -> None:
        rows = f"POST {self.path} HTTP/1.1", f"Host: localhost:{self.port}", "Content-Type: application/json"
        self.writer.write("\r\n".join((*rows, f"Content-Length: {len(body)}", "", "")).encode() + body)

    async def ask(self, body: bytes) -> tuple[int, bytes]:
        self.send(body)
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        return int(head.split()[1]), await self.reader.readexactly(length)


def resident(process: int) -> float:
    """Megabytes."""
    (line,) = [x for x in Path(f"/proc/{process}/status").read_text().splitlines() if x.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


async def load(given: argparse.Namespace, port: int, path: str, body: bytes) -> tuple[list[float], Counter[str]]:
    """Seconds of each request, and what went wrong."""
    times: list[float] = []
    wrong: Counter[str] = Counter()
    begin, asked = perf_counter(), 0
    async with Client(port, path) as first:
        _, wanted = await first.ask(body)

    def more() -> bool:
        return perf_counter() - begin < given.seconds if given.seconds else asked < given.requests

    async def client() -> None:
        nonlocal asked
        async with Client(port, path) as one:
            while more():
                asked += 1
                start = perf_counter()
                status, answer = await one.ask(body)
                times.append(perf_counter() - start)
                if status != 200:
                    wrong[f"status {status}"] += 1
                elif not same(json.loads(answer), json.loads(wanted)):
                    wrong["another answer"] += 1

    async def fault(number: int) -> None:
        draw = random.Random(number)
        while more():
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                async with Client(port, path) as one:
                    if draw.random() < 0.4:  # gone before the answer
                        one.send(body)
                        await one.writer.drain()
                    elif draw.random() < 0.2:
                        one.writer.write(bytes(draw.randrange(256) for _ in range(200)) + b"\r\n\r\n")
                        await one.reader.read()
                    else:
                        status, _ = await one.ask(draw.choice(BAD))
                        if status != 422:
                            wrong[f"status {status} to a bad body"] += 1
            await asyncio.sleep(0.02)

    begin = perf_counter()
    faults = (fault(n) for n in range(4 if given.faults else 0))
    await asyncio.gather(*(client() for _ in range(given.clients)), *faults)
    return times, wrong


def same(found: object, wanted: object) -> bool:
    """Numbers up to their last digits: a batch of another size adds up in another order."""
    if isinstance(found, float) and isinstance(wanted, float):
        return abs(found - wanted) < 1e-5
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(same(found[key], wanted[key]) for key in wanted)
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return found == wanted


def get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    with contextlib.closing(connection):
        return connection.getresponse().read()


def own(port: int) -> tuple[float, float, float]:
    """Seconds of computing so far, in how many batches, and of how many inputs."""
    rows = dict(line.rsplit(" ", 1) for line in get(port, "/metrics").decode().splitlines() if line[0] != "#")
    found = {name.partition("{")[0].removeprefix("zooproof_"): float(value) for name, value in rows.items()}
    return found["batch_seconds_total"], found["batches_total"], found["batch_items_total"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--faults", action="store_true")
    given = parser.parse_args()
    words = [sys.executable, "-m", "tasks.serve", given.run, "--port", "0", "--device", "cpu"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    quiet = subprocess.DEVNULL  # of malformed requests there is a line each
    place = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=quiet, text=True, env=place) as server:
        try:
            line = server.stdout.readline()  # type: ignore
            if "http://" not in line:
                sys.exit(f"{given.run} is not served: python -m tasks.serve {given.run} says why")
            port = int(line.rpartition(":")[2])
            name = json.loads(get(port, "/v1/models"))["data"][0]["id"]
            told = json.loads(get(port, "/openapi.json"))["paths"][f"/v1/models/{name}/predict"]["post"]
            body = json.dumps(told["requestBody"]["content"]["application/json"]["example"]).encode()
            ask = f"/v1/models/{name}/predict"
            asyncio.run(load(argparse.Namespace(**{**vars(given), "requests": 1000, "seconds": 0}), port, ask, body))
            before, start, minute = resident(server.pid), perf_counter(), []
            timer = threading.Timer(60, lambda: minute.append(resident(server.pid)))
            timer.start()
            times, wrong = asyncio.run(load(given, port, ask, body))
            timer.cancel()
            seconds, after = perf_counter() - start, resident(server.pid)
            computed, batches, items = own(port)
            each, size = computed / batches, items / batches
        finally:
            server.terminate()
    times.sort()
    print(f"{len(times):,} requests of {given.clients} clients in {seconds:.0f} s: {len(times) / seconds:.0f} a second")
    half, late = times[len(times) // 2], times[int(0.99 * len(times))]
    print(f"p50 {1000 * half:.1f} ms, p99 {1000 * late:.1f} ms; a batch of {size:.1f} takes the model {1000 * each:.1f} ms")
    told = "".join(f"{one:.0f} MB after a minute, " for one in minute)
    print(f"memory {before:.0f} MB, {told}{after:.0f} MB at the end ({100 * (after / before - 1):+.1f} %)")
    print(f"wrong: {dict(wrong) or 'none'}")
    sys.exit(bool(wrong) or after > 1.05 * before or server.returncode != 0)


if __name__ == "__main__":
    main()
