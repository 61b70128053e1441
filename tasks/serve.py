"""Serve trained models over HTTP: ``python -m tasks.serve runs/NAME``."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from tasks import commands
from tasks.commands import Command, checking_input
from tasks.options import Options, UserError, option, require_device

PROGRAM = "tasks.serve"
TOKEN = "SERVE_TOKEN"
TOKENIZERS = "TOKENIZERS_PARALLELISM"


@dataclass
class ServeOptions(Options):
    title = "the server"
    run: list[str] = option((), "folders of runs; their names are those of the models", many=True, path=True)
    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0 is all of the machine's")
    port: int = option(8000, "port to listen at; 0 takes a free one", least=0, most=65535)
    hosts: list[str] = option((), "further names that requests, and pages that send some, may call the server by", many=True)
    token: str = option("", f"requests must carry it, as a bearer (default: what {TOKEN} of the environment is)")
    max_batch: int = option(16, "inputs that are computed together, at most", least=1)
    max_wait_ms: float = option(
        0.0,
        "milliseconds that the first input of a batch waits for others; what comes while one is computed shares the next",
        least=0,
        most=60_000,
    )
    queue: int = option(128, "inputs of a model that wait, at most; then requests get 503", least=1)
    per_client: int = option(0, "requests of one address in work, at most; then it gets 429. 0 is no limit", least=0)
    connections: int = option(1000, "connections at a time, at most; then there is 503", least=2)
    slow: float = option(10.0, "seconds for the head of a request to come, and for an answer to be taken on", above=0, most=600)
    timeout: float = option(60.0, "seconds that a request may take; then it gets 504", above=0)
    max_body_mb: float = option(8.0, "megabytes of a request, at most; then it gets 413", above=0, most=1000)
    max_text: int = option(20_000, "characters of a text, and tokens of a written one, at most", least=1)
    device: str = option("auto", "auto takes a GPU if there is one", choices=("auto", "cpu", "cuda"))
    precision: str = option("fp32", "fp16 needs a GPU", choices=("fp32", "bf16", "fp16"))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_device(self)
        self.token = self.token or os.environ.get(TOKEN, "")
        if not self.token.isascii() or any(x.isspace() for x in self.token):
            raise UserError("--token must be ASCII without spaces")
        for name in self.hosts:
            if not re.fullmatch(r"[\w.-]+|\[[\da-fA-F:.]+\]", name, re.ASCII):
                raise UserError(f"--hosts must be names such as models.example.org, without scheme and port, got {name!r}")


def serve(given: dict[str, Any]) -> None:
    with checking_input():
        options = ServeOptions(**given)
        server = server_of(options)
    import uvicorn

    from tasks.serving.connections import patient

    config = uvicorn.Config(
        server.app(), host=options.host, port=options.port, log_level="warning", access_log=False, timeout_graceful_shutdown=30,
        http=patient(options.slow), limit_concurrency=options.connections, server_header=False, ws="none",
    )  # fmt: skip

    class Announced(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            for one in self.servers[:1]:  # none where it could not start
                host, port = one.sockets[0].getsockname()[:2]
                where = f"[{host}]" if ":" in host else host
                print(f"serving {', '.join(server.models)} at http://{where}:{port}", flush=True)

    signal.signal(signal.SIGTERM, lambda *_: None)  # once all requests are answered, the exit code is 0
    running = Announced(config)
    with contextlib.suppress(SystemExit), settled():  # uvicorn has told why
        running.run()
    if not running.started:
        raise UserError(f"--port {options.port}: cannot listen at {options.host}:{options.port}")


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """Garbage is not looked for among what is there before the first request, which takes a tenth of a second and more, in which
    nobody is answered; and a tokenizer takes one thread, unless the environment says otherwise: of a few short texts, several
    wait for each other. Both are undone; but where the caller froze something before, all of it stays frozen, for Python cannot
    tell it apart."""
    own = TOKENIZERS not in os.environ
    os.environ.setdefault(TOKENIZERS, "false")
    frozen = gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()
        if own:
            del os.environ[TOKENIZERS]


def server_of(options: ServeOptions) -> Any:
    """Errors: `UserError` and `ValueError` for what cannot be served."""
    if not options.run:
        raise UserError("give the folder of a run or more, such as runs/NAME")
    missing = [name for name in ("starlette", "uvicorn", "python_multipart") if find_spec(name) is None]
    if missing:
        raise UserError(f"{missing[0]} is not installed: pip install 'zooproof[serving]'")
    from tasks.serving.models import load
    from tasks.serving.server import Limits, Server

    models: dict[str, Any] = {}
    for path in options.run:
        name = Path(path).resolve().name
        if name in models:
            raise UserError(f"{path}: there is a model {name!r} already, and names of folders are names of models")
        models[name] = load(
            path, device=options.device, precision=options.precision, text=options.max_text, batch=options.max_batch
        )
    wait, body = options.max_wait_ms / 1000, int(options.max_body_mb * 1e6)
    limits = Limits(
        options.max_batch, wait, options.queue, options.timeout, body, options.token, names_of(options.host, options.hosts),
        tuple(name.lower() for name in options.hosts), options.per_client,
    )  # fmt: skip
    return Server(models, limits)


def names_of(host: str, more: Sequence[str] = ()) -> tuple[str, ...]:
    """What the server may be called: of this machine where it listens to that alone, and `more`; () is by any name."""
    try:
        alone = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        alone = False
    return ("localhost", "127.0.0.1", "[::1]", host.lower(), *(x.lower() for x in more)) if alone or more else ()


COMMANDS = {
    "serve": Command(
        ServeOptions, "serve the models of runs over HTTP", serve, "runs/digits runs/own --port 8000", "--run {}", "run"
    )
}


def main(argv: Sequence[str] | None = None) -> int:
    return commands.main(PROGRAM, COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
