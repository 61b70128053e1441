"""Texts over HTTP as they are written: server-sent events, and the completions of OpenAI's API, so that its clients work here.

One choice a prompt. What of that API is not here is refused, not ignored: ``n``, ``echo``, ``logprobs``, ``stop``, ``suffix``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tasks.served import BadInput, Generations, Writing
from tasks.serving_input import Refused, body_of, json_of

if TYPE_CHECKING:
    from tasks.serving import Server

NAMES = {"max_tokens": "max_new_tokens", "temperature": "temperature", "top_p": "top_p", "seed": "seed"}
NEUTRAL = {
    "n": 1, "best_of": 1, "echo": False, "logprobs": None, "stop": None, "suffix": None, "presence_penalty": 0,
    "frequency_penalty": 0, "logit_bias": {}, "user": ..., "stream_options": None,
}  # fmt: skip
"""What clients may send as long as it asks for nothing; `user` is whatever it is."""
TOKENS = 16
"""Of a completion where nobody says, as in that API."""


class Events(StreamingResponse):
    """Whose iterator is closed, which frees its place, as soon as the client has gone."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.body_iterator.aclose()  # type: ignore


def asked(server: Server, found: dict[str, Any]) -> tuple[str, list[dict[str, Any]], bool]:
    """The model, its inputs, a prompt each, and whether to stream. Errors: `Refused`, `BadInput`."""
    name, prompt, stream = found.get("model"), found.get("prompt", ""), found.get("stream", False)
    if not isinstance(name, str):
        raise BadInput("model must be a string, the name of a model")
    if not isinstance(server.model(name), Generations):
        writers = [n for n, x in server.models.items() if isinstance(x, Generations)]
        raise Refused(404, f"{name} does not write texts: {', '.join(writers) or 'none of the models'} does")
    if stream is None or not isinstance(stream, bool):
        raise BadInput("stream must be true or false")
    for key, value in found.items():
        if key in NEUTRAL and NEUTRAL[key] is not ... and value not in (NEUTRAL[key], None):
            raise BadInput(f"{key} is not supported: leave it out")
    settings = {NAMES[key]: value for key, value in found.items() if key in NAMES and value is not None}
    own = {key: value for key, value in found.items() if key in Generations.SETTINGS and key not in NAMES}
    if unknown := sorted({*found} - {"model", "prompt", "stream", *NAMES, *NEUTRAL, *own}):
        raise BadInput(f"{unknown[0]!r} is no setting of a completion")
    if settings.get("temperature") == 0:
        settings = {key: value for key, value in settings.items() if key != "temperature"} | {"greedy": True}
    prompts = prompt if isinstance(prompt, list) and prompt else [prompt]
    if stream and len(prompts) > 1:
        raise BadInput("prompt must be one string where it is streamed")
    return name, [{"max_new_tokens": TOKENS, **settings, **own, "prompt": one} for one in prompts], stream


def renamed(error: BadInput) -> BadInput:
    return BadInput(str(error).replace("max_new_tokens", "max_tokens"))


async def complete(server: Server, request: Request) -> Response:
    from tasks.serving import answered, unless_gone

    limits = server.limits
    async with asyncio.timeout(limits.timeout):
        name, inputs, stream = asked(server, json_of(await body_of(request, limits.body)))
        request.path_params["model"] = name  # for the metrics
        try:
            items = await asyncio.to_thread(lambda: [server.models[name].read(one) for one in inputs])
        except BadInput as error:
            raise renamed(error) from None
        head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": name}
        if stream:
            return await begun(server, name, items[0], head)
        with server.places(len(items)):
            work = asyncio.gather(*(server.written(name, item) for item in items))
            rows = await unless_gone(request, work)
    choices = [choice(row["text"], row["finish_reason"], n) for n, row in enumerate(rows)]
    return answered(head | {"choices": choices, "usage": usage(server.models[name], items)})


def choice(text: str, reason: str | None, index: int = 0) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


def usage(model: Any, items: list[Writing]) -> dict[str, int]:
    read, wrote = sum(len(model.tokenizer.encode(one.prompt)) for one in items), sum(one.tokens for one in items)
    return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}


async def begun(server: Server, name: str, item: Writing, head: dict[str, Any]) -> Response:
    """The first piece is waited for, so that what fails at once has a status of its own. Errors: `Busy`."""
    pieces, places = server.pieces(name, item), contextlib.ExitStack()
    places.enter_context(server.places(1))
    try:
        first = await anext(pieces, None)
    except BaseException:
        places.close()
        raise
    return Events(events(server, name, item, head, first, pieces, places), media_type="text/event-stream",
                  headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})  # fmt: skip


async def events(
    server: Server, name: str, item: Writing, head: dict[str, Any], first: str | None, pieces: Any, places: Any
) -> AsyncIterator[bytes]:
    with places:
        async with aclosing(pieces):
            try:
                async with asyncio.timeout(server.limits.timeout):
                    if first is not None:
                        yield event(head | {"choices": [choice(first, None)]})
                    async for piece in pieces:
                        if piece:
                            yield event(head | {"choices": [choice(piece, None)]})
                reason = "stop" if item.ended else "length"
                yield event(head | {"choices": [choice("", reason)], "usage": usage(server.models[name], [item])})
            except TimeoutError:
                yield event({"error": {"message": f"not done within {server.limits.timeout:g} seconds", "type": "server_error"}})
            except Exception:
                yield event({"error": {"message": "the model failed on this input", "type": "server_error"}})
    yield b"data: [DONE]\n\n"


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"
