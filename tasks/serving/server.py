"""The server: every model behind a batcher of its own, over HTTP. `tasks.serve` is the command."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import sys
import traceback
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter, time
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tasks.options import UserError
from tasks.serving import page
from tasks.serving.batcher import Batcher, Busy
from tasks.serving.bodies import Refused, header, inputs_of
from tasks.serving.metrics import Metrics
from tasks.serving.models import BadInput, Served
from tasks.serving.pictures import Pictures
from tasks.serving.writing import Generations, Writing

ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
WATCH = 0.05
"""Seconds that a request is in work before somebody looks whether its client is still there: most are answered by then."""
INLINE = 0.02
"""Seconds that batches of a model may take so that one that is no larger may hold up the event loop."""
PREDICT = "/v1/models/", "/predict"
"""What stands before and after the name in the path that is asked most."""
GONE = 499
"""The status, in metrics, of a request whose client went away."""


@dataclass
class Limits:
    """wait and timeout in seconds, body in bytes; token: what requests must carry, "" for nothing.

    hosts: names that requests may call the server by; any if there are none. origins: names of hosts whose pages may send
    requests, beside the server's own page. per_client: requests of one address in work at most, 0 for any number.
    """

    batch: int = 16
    wait: float = 0.0
    queue: int = 128
    timeout: float = 60.0
    body: int = 8_000_000
    token: str = ""
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    per_client: int = 0


@dataclass
class Server:
    """models: by the names that requests have."""

    models: dict[str, Served]
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)
    batchers: dict[str, Batcher] = field(default_factory=dict)
    started: int = field(default_factory=lambda: int(time()))
    clients: Counter[str] = field(default_factory=Counter)
    """Requests in work, by the address that they came from."""
    writing: int = 0
    """Texts that are being written, each of which has an item in a queue, or an answer on its way."""

    def app(self) -> App:
        predict = self.guarded(self.predict)
        routes = [
            Route("{model}".join(PREDICT), predict, methods=["POST"]),
            *page.ROUTES,
            Route("/health/live", self.live),
            Route("/health/ready", self.ready),
            Route("/openapi.json", self.guarded(self.described, free=True)),
            Route("/metrics", self.guarded(self.measured)),
            Route("/v1/models", self.guarded(self.listed)),
            Route("/v1/completions", self.guarded(self.completions), methods=["POST"]),
            Route("/v1/chat/completions", self.guarded(self.chat), methods=["POST"]),
            Route("/v1/models/{model}/explain", self.guarded(self.explain), methods=["POST"]),
            Route("/v2", self.guarded(self.open_server)),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/v2/models/{model}", self.guarded(self.open_model)),
            Route("/v2/models/{model}/ready", self.guarded(self.open_ready)),
            Route("/v2/models/{model}/infer", self.guarded(self.open_infer), methods=["POST"]),
        ]
        return App(predict, routes, self.lifespan)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        limits, alone = self.limits, len(self.models) == 1
        async with contextlib.AsyncExitStack() as stack:
            for name, model in self.models.items():
                wait = 0 if isinstance(model, Generations) else limits.wait
                seen = partial(self.metrics.batch, name)
                made = Batcher(model.answer, max_batch=limits.batch, max_wait=wait, queue=limits.queue, seen=seen)
                if model.sized and alone:  # another model would be held up, and its thread fights for the lock anyway
                    made.inline, made.size = INLINE, model.size
                self.batchers[name] = await stack.enter_async_context(made)
            yield

    def guarded(
        self, call: Callable[[Request], Awaitable[Response]], free: bool = False
    ) -> Callable[[Request], Awaitable[Response]]:
        """With the token checked (unless `free`), what is wrong told in one sentence, and requests counted."""

        async def handle(request: Request) -> Response:
            start, leave = perf_counter(), nothing
            try:
                self.require_host(request)
                if not free:
                    self.require_token(request)
                if request.method == "POST":
                    self.require_origin(request)
                    leave = self.turn(request)
                response = await call(request)
            except Refused as error:
                response = told(error.status, str(error), error.headers)
            except Busy as error:
                response = told(503, f"too much to do: {error}", {"Retry-After": "1"})
            except TimeoutError:
                response = told(504, f"not done within {self.limits.timeout:g} seconds")
            except (BadInput, UserError) as error:
                response = told(422, " ".join(str(error).split()))
            except (ClientDisconnect, Gone):
                response = Response(status_code=GONE)
            except Exception as error:
                traceback.print_exception(error, file=sys.stderr)
                response = told(500, "the model failed on this input: the server's log says how")
            except BaseException:
                leave()
                raise
            if isinstance(response, Events):  # which goes on after this
                response.leave = leave
            else:
                leave()
            name = request.path_params.get("model", "")
            if name in self.models:
                self.metrics.request(name, response.status_code, perf_counter() - start)
            return response

        return handle

    def require_host(self, request: Request) -> None:
        """A page of somebody else's, whose name was made to mean this machine, gets no answer (DNS rebinding)."""
        if self.limits.hosts and name_of(header(request, b"host") or "") not in self.limits.hosts:
            raise Refused(421, f"the server is not called so, but {self.limits.hosts[0]}: --hosts gives it further names")

    def require_origin(self, request: Request) -> None:
        """A page of somebody else's may not make a browser send requests. Programs give no origin; a token is proof enough."""
        origin = header(request, b"origin")
        if origin is None or self.limits.token:
            return
        host = origin.lower().partition("://")[2]
        if not host or (host != (header(request, b"host") or "").lower() and name_of(host) not in self.limits.origins):
            raise Refused(
                403, "a page of another origin may not ask the server: --hosts names those that may, or give it a token"
            )

    def turn(self, request: Request) -> Callable[[], None]:
        """Takes one of the requests that an address may have in work, and tells how to give it back. Errors: `Refused`."""
        if not self.limits.per_client:
            return nothing
        who = request.client.host if request.client else ""
        if self.limits.per_client <= self.clients[who]:
            raise Refused(429, f"{self.clients[who]} requests of yours are in work: wait for one", {"Retry-After": "1"})
        self.clients[who] += 1

        def leave() -> None:
            self.clients[who] -= 1
            if not self.clients[who]:
                del self.clients[who]

        return leave

    def require_token(self, request: Request) -> None:
        if not self.limits.token:
            return
        kind, _, given = (header(request, b"authorization") or "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.encode(), self.limits.token.encode()):
            raise Refused(401, "a bearer token is needed: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    async def live(self, request: Request) -> Response:
        return answered({"status": "live"})

    async def ready(self, request: Request) -> Response:
        dead = [name for name in self.models if name not in self.batchers or not self.batchers[name].alive]
        return answered({"status": "not ready", "models": dead} if dead else {"status": "ready"}, 503 if dead else 200)

    async def measured(self, request: Request) -> Response:
        waiting = {name: len(batcher.waiting) for name, batcher in self.batchers.items()}
        return PlainTextResponse(self.metrics.text(waiting), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def described(self, request: Request) -> Response:
        from tasks.serving.openapi import describe

        return answered(describe(self))

    async def listed(self, request: Request) -> Response:
        rows = [
            {"id": name, "object": "model", "created": self.started, "owned_by": "zooproof", "task": model.task,
             "input": model.takes, "about": model.about()}
            for name, model in self.models.items()
        ]  # fmt: skip
        return answered({"object": "list", "data": rows})

    def model(self, name: Any) -> Served:
        if name not in self.models:
            raise Refused(404, f"there is no such model: there are {', '.join(self.models)}")
        return self.models[name]

    async def predict(self, request: Request, explained: bool = False) -> Response:
        name = request.path_params["model"]
        model = self.model(name)
        if explained and not model.explains:
            raise Refused(404, f"{name} does not explain its answers: classifiers of pictures and translators do")
        async with asyncio.timeout(self.limits.timeout):
            inputs = await inputs_of(request, self.limits.body, isinstance(model, Pictures))
            found = await self.replies(request, name, inputs, explained)
        return answered({"model": name, "outputs": found})

    async def explain(self, request: Request) -> Response:
        return await self.predict(request, explained=True)

    async def replies(self, request: Request, name: str, inputs: Sequence[Any], explained: bool = False) -> list[Any]:
        """The answers, while the client waits. Errors: those of `answers`, and `Gone`."""
        if len(inputs) > self.limits.queue:
            raise BadInput(f"inputs must be {self.limits.queue} at most, got {len(inputs)}")
        return await unless_gone(request, self.answers(name, inputs, explained))

    async def completions(self, request: Request) -> Response:
        from tasks.serving.completions import complete

        return await complete(self, request)

    async def chat(self, request: Request) -> Response:
        from tasks.serving.chat import CHAT
        from tasks.serving.completions import complete

        return await complete(self, request, CHAT)

    async def open_server(self, request: Request) -> Response:
        from tasks.serving import open_inference

        return answered(open_inference.server())

    async def open_model(self, request: Request) -> Response:
        from tasks.serving import open_inference

        name = request.path_params["model"]
        return answered(open_inference.model(name, self.model(name)))

    async def open_ready(self, request: Request) -> Response:
        name = request.path_params["model"]
        self.model(name)
        ready = name in self.batchers and self.batchers[name].alive
        return answered({"name": name, "ready": ready}, 200 if ready else 503)

    async def open_infer(self, request: Request) -> Response:
        from tasks.serving import open_inference

        return await open_inference.infer(self, request)

    async def answers(self, name: str, inputs: Sequence[Any], explained: bool = False) -> list[Any]:
        """explained: of models that explain. Errors: `BadInput`, `UserError`, `Busy`."""
        model = self.models[name]
        if model.quick:
            items = [model.read(value) for value in inputs]
        else:
            items = await asyncio.to_thread(lambda: [model.read(value) for value in inputs])
        if explained:
            items = [one._replace(explained=True) for one in items]
        if not isinstance(model, Generations):
            return await self.batchers[name].answers(items)
        with self.places(len(items)):
            return await gather_or_cancel(self.written(name, item) for item in items)

    async def written(self, name: str, item: Writing) -> dict[str, Any]:
        text = "".join([piece async for piece in self.pieces(name, item)])
        return {"text": text, "tokens": item.tokens, "finish_reason": "stop" if item.ended else "length"}

    @contextlib.contextmanager
    def places(self, number: int) -> Any:
        """Room for so many texts, from begin to end: none of them meets a full queue in its midst. Errors: `Busy`."""
        if self.writing + number > self.limits.queue:
            raise Busy(f"{self.writing} of {self.limits.queue} places are taken")
        self.writing += number
        try:
            yield
        finally:
            self.writing -= number

    async def pieces(self, name: str, item: Writing) -> AsyncGenerator[str]:
        """A text as it comes. Other texts get their turn between any two pieces."""
        while (piece := (await self.batchers[name].answers([item]))[0]) is not None:
            yield piece


def name_of(host: str) -> str:
    """Without the port, in small letters."""
    return (host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]).lower()


class App(Starlette):
    """Starlette, but `predict` is called without its layers, which cost as much as all that a request needs of ours: it tells
    whatever is wrong by itself."""

    def __init__(self, predict: Callable[[Request], Awaitable[Response]], routes: list[Route], lifespan: Any) -> None:
        super().__init__(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: refused, Exception: failed})
        self.predict = predict

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        name = asked_most(scope)
        if not name:
            return await super().__call__(scope, receive, send)
        scope["path_params"] = {"model": name}
        response = await self.predict(Request(scope, receive))
        await response(scope, receive, send)


def asked_most(scope: Any) -> str:
    """The model that a request to predict asks, "" for other requests."""
    if scope["type"] != "http" or scope["method"] != "POST" or scope.get("root_path"):
        return ""
    path, (before, after) = scope["path"], PREDICT
    if not path.startswith(before) or not path.endswith(after):
        return ""
    name = path[len(before) : -len(after)]
    return "" if "/" in name else name


def nothing() -> None:
    pass


class Events(StreamingResponse):
    """Whose iterator is closed as soon as the client has gone, and then what it took is freed, also where it never began."""

    leave: Callable[[], None]
    held: contextlib.AsyncExitStack

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            async with self.held, aclosing(self.body_iterator):  # type: ignore
                await super().__call__(scope, receive, send)
        finally:
            self.leave()


async def gather_or_cancel(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """What all of them give, or the first error; then the others end too."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return [*await asyncio.gather(*tasks)]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Gone(Exception):
    """The client does not wait any more."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """What `work` gives; it is cancelled, which frees its places, when the client has gone and after `WATCH`. Errors: `Gone`."""
    ours: Any = asyncio.current_task()
    left, watch = False, None

    async def leaving() -> None:
        nonlocal left
        with contextlib.suppress(Exception):  # who cannot be heard any more has left too
            while (await request.receive())["type"] != "http.disconnect":
                pass
        if watch and not watch.cancelling():
            left = True
            ours.cancel()

    def begin() -> None:
        nonlocal watch
        watch = asyncio.create_task(leaving())

    timer = asyncio.get_running_loop().call_later(WATCH, begin)
    try:
        return await work
    except asyncio.CancelledError:
        if left and ours.uncancel() == 0:  # else somebody else cancels too
            raise Gone from None
        raise
    finally:
        timer.cancel()
        if watch:
            watch.cancel()


def answered(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(ENCODER.encode(value).encode(), status, headers, "application/json")


def told(status: int, why: str, headers: dict[str, str] | None = None) -> Response:
    """In the shape that OpenAI's clients read."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return answered({"error": {"message": why, "type": kind}}, status, headers)


async def refused(request: Request, error: Any) -> Response:
    """Paths and methods that there are not."""
    why = {404: "there is no such path", 405: "the path takes another method"}.get(error.status_code, error.detail)
    return told(error.status_code, why, error.headers)


async def failed(request: Request, error: Exception) -> Response:
    return told(500, "the server failed: its log says how")
