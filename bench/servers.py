"""The same model behind our server, LitServe and mosec, asked by the same clients, one server after another.

    pip install -e ".[serving,translation,servers]"
    python bench/servers.py runs/NAME

runs/NAME is a run of text classification. Each server computes up to 16 inputs at a time, in one process of the model and with as
many threads of torch as OMP_NUM_THREADS says; in those of the others the first input of a batch waits up to 5 ms. First 32
clients ask without a pause. Then the server is half loaded: requests come at random times at half of the rate that was reached,
whether others are answered or not, and a latency counts from when its request was due. "Own" is what our model takes for a batch
then, and "clients" the processor's time that a request takes of those who ask.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from clients import Seen, measure
from serve import ROOT, Client, own, same

sys.path.insert(0, str(ROOT))
PATHS = {"zooproof": "", "litserve": "/predict", "mosec": "/inference"}
BODY = json.dumps({"inputs": ["the cat sat on the mat"]}).encode()
BATCH, WAIT = 16, 0.005


def model():
    from tasks.serving.models import load

    return load(os.environ["RUN"], device="cpu", precision="fp32", text=20_000, batch=BATCH)


def answers(served, asked: list[dict]) -> list[dict]:
    return [{"outputs": [row]} for row in served.answer([served.read(one["inputs"][0]) for one in asked])]


with contextlib.suppress(ImportError):  # what they start must be found in this file by processes of theirs
    import litserve
    import mosec

    class Api(litserve.LitAPI):
        def setup(self, device):
            self.served = model()

        def decode_request(self, request):
            return request

        def predict(self, asked):
            return answers(self.served, asked)

        def encode_response(self, output):
            return output

    class Worker(mosec.Worker):
        def __init__(self):
            self.served = model()

        def forward(self, data):
            return answers(self.served, data)


def litserve_server(port: int) -> None:
    api = Api(max_batch_size=BATCH, batch_timeout=WAIT)
    litserve.LitServer(api, accelerator="cpu").run(port=port, log_level="warning", generate_client_file=False)


def mosec_server(port: int) -> None:
    sys.argv = ["mosec", "--port", str(port), "--log-level", "error"]
    server = mosec.Server()
    server.append_worker(Worker, num=1, max_batch_size=BATCH, max_wait_time=int(1000 * WAIT))
    server.run()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


async def ready(port: int, path: str) -> dict:
    for _ in range(600):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            async with Client(port, path) as one:
                status, answer = await one.ask(BODY)
                if status == 200:
                    return json.loads(answer)
        await asyncio.sleep(0.2)
    raise SystemExit(f"{path} does not answer")


def right(wanted: object, text: bytes) -> bool:
    return same(json.loads(text)["outputs"], wanted)


def show(name: str, what: str, seen: Seen, more: str = "") -> None:
    if not seen.times:
        raise SystemExit(f"{name}: all {seen.failed} requests failed")
    late = f"p50 {seen.late(0.5):6.1f} ms  p99 {seen.late(0.99):6.1f} ms  clients {1000 * seen.spent:.2f} ms"
    print(f"{name:9} {what:10} {seen.rate:6.0f}/s  failed {seen.failed}  {late}{more}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--only", nargs="+", choices=[*PATHS], default=[*PATHS])
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--code", type=Path, default=ROOT, help="the checkout whose server is asked, such as an earlier commit's")
    parser.add_argument("--port", type=int, help="be the server that --only names, at this port")
    given = parser.parse_args()
    if given.port:
        return {"litserve": litserve_server, "mosec": mosec_server}[given.only[0]](given.port)
    folder = Path(given.run).resolve()
    environment = {**os.environ, "RUN": str(folder), "PYTHONPATH": str(given.code.resolve())}
    rates = {}
    for name in given.only:
        port = free_port()
        path = PATHS[name] or f"/v1/models/{folder.name}/predict"
        words = [__file__, given.run, "--only", name, "--port", str(port)]
        if name == "zooproof":
            words = ["-m", "tasks.serve", str(folder), "--device", "cpu", "--port", str(port)]
        quiet = subprocess.DEVNULL
        place = given.code if name == "zooproof" else None
        server = subprocess.Popen(
            [sys.executable, *words], env=environment, cwd=place, stdout=quiet, stderr=quiet, process_group=0
        )
        try:
            wanted = asyncio.run(ready(port, path))["outputs"]
            number = given.requests if name != "litserve" else given.requests // 5  # or it takes minutes
            ask = partial(measure, port, path, BODY, partial(right, wanted))
            ask(number // 10, given.clients)  # its first ones are slower
            seen = ask(number, given.clients)
            rates[name] = seen.rate
            show(name, f"{given.clients} clients", seen)
            before = own(port) if name == "zooproof" else None
            seen = ask(number // 2, given.clients, seen.rate / 2)
            more = ""
            if before and seen.times:
                (seconds, batches, items), after = before, own(port)
                count = after[1] - batches
                each, size = (after[0] - seconds) / count, (after[2] - items) / count
                more = f"  own {1000 * each:.1f} ms for a batch of {size:.1f}"
            show(name, "half load", seen, more)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
        time.sleep(1)
    for name in [one for one in rates if one != "zooproof" and "zooproof" in rates]:
        print(f"zooproof does {rates['zooproof'] / rates[name]:.2f} times as many a second as {name}")


if __name__ == "__main__":
    main()
