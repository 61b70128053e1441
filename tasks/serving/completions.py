"""Texts over HTTP as they are written: server-sent events, and the completions of OpenAI's API, so that its clients work here.

What of that API is not here is refused, not ignored: ``echo``, ``logprobs``, ``suffix`` and others of `NEUTRAL`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from tasks.serving import schemas
from tasks.serving.batcher import Busy
from tasks.serving.bodies import Refused, body_of, json_of
from tasks.serving.models import BadInput
from tasks.serving.schemas import Schema
from tasks.serving.writing import Generations, Writing, until

if TYPE_CHECKING:
    from tasks.serving.server import Server

NAMES = {"max_tokens": "max_new_tokens", "temperature": "temperature", "top_p": "top_p", "seed": "seed"}
NEUTRAL = {
    "best_of": 1, "echo": False, "logprobs": None, "suffix": None, "presence_penalty": 0, "frequency_penalty": 0,
    "logit_bias": {}, "user": ...,
}  # fmt: skip
"""What clients may send as long as it asks for nothing; `user` is whatever it is."""
OWN = ("n", "stop", "stream", "stream_options")
TOKENS = 16
"""Of a completion where nobody says, as in that API."""
CHOICES, STOPS, STOP = 16, 4, 200
"""Texts that a prompt gets at most, texts that end one at most, and characters of these."""


class Asked(NamedTuple):
    """inputs: an object for each choice. stops: what a text ends before."""

    name: str
    inputs: list[dict[str, Any]]
    stops: list[str]
    stream: bool


class Form(NamedTuple):
    """What differs between completions and chats. whole and piece make the choices, of a text, why it ended, and its index."""

    kind: str
    kind_of_piece: str
    letters: str
    """With which the ids begin."""
    read: Callable[[dict[str, Any]], dict[str, Any]]
    """A request as one of completions. Errors: `BadInput`."""
    whole: Callable[[str, str | None, int], dict[str, Any]]
    piece: Callable[[str, str | None], dict[str, Any]]


def given_of(found: dict[str, Any]) -> dict[str, Any]:
    """Without what is null, which is as if it were left out."""
    return {key: value for key, value in found.items() if value is not None or key in ("model", "prompt")}


def asked(server: Server, found: dict[str, Any]) -> Asked:
    """Errors: `Refused`, `BadInput`."""
    name, prompt, stream = found.get("model"), found.get("prompt", ""), found.get("stream", False)
    if not isinstance(name, str):
        raise BadInput("model must be a string, the name of a model")
    if not isinstance(server.model(name), Generations):
        raise Refused(404, f"{name} does not write texts: {', '.join(writers(server)) or 'none of the models'} does")
    if not isinstance(stream, bool):
        raise BadInput("stream must be true or false")
    for key, value in found.items():
        if key in NEUTRAL and NEUTRAL[key] is not ... and value != NEUTRAL[key]:
            raise BadInput(f"{key} is not supported: leave it out")
    settings = {NAMES[key]: value for key, value in found.items() if key in NAMES}
    own = {key: value for key, value in found.items() if key in Generations.SETTINGS and key not in (*NAMES, "max_new_tokens")}
    if unknown := sorted({*found} - {"model", "prompt", *OWN, *NAMES, *NEUTRAL, *own}):
        raise BadInput(f"{unknown[0]!r} is no setting of a completion")
    if settings.get("temperature") == 0 and not isinstance(settings["temperature"], bool):
        if own.get("greedy") is False:
            raise BadInput("temperature 0 takes the likeliest token, and greedy false does not: give one")
        settings = {key: value for key, value in settings.items() if key != "temperature"} | {"greedy": True}
    prompts = prompt if isinstance(prompt, list) and prompt else [prompt]
    many = whole_number(found.get("n", 1), "n", CHOICES)
    if stream and len(prompts) * many > 1:
        raise BadInput("prompt must be one string, and n 1, where it is streamed")
    if (texts := len(prompts) * many) > server.limits.queue:  # before there is an object for each
        raise BadInput(f"prompt and n must ask for {server.limits.queue} texts at most, got {texts:,}")
    inputs = [{**settings, **own, "prompt": one} for one in prompts for _ in range(many)]
    if many > 1:
        seed = whole_number(settings.get("seed", 0), "seed", schemas.LARGEST - many, least=0)
        inputs = [one | {"seed": seed + n % many} for n, one in enumerate(inputs)]
    if not isinstance(found.get("stream_options", {}), dict):
        raise BadInput("stream_options must be an object")
    return Asked(name, inputs, stops_of(found.get("stop", [])), stream)


def writers(server: Server) -> list[str]:
    return [name for name, model in server.models.items() if isinstance(model, Generations)]


def whole_number(value: Any, name: str, most: int, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadInput(f"{name} must be a whole number from {least} to {most}, got {value!r}")
    return value


def stops_of(value: Any) -> list[str]:
    found = [value] if isinstance(value, str) else value
    right = isinstance(found, list) and len(found) <= STOPS and all(isinstance(x, str) and 0 < len(x) <= STOP for x in found)
    if not right:
        raise BadInput(f"stop must be a string, or {STOPS} of them at most, each of 1 to {STOP} characters")
    return found


def choice(text: str, reason: str | None, index: int = 0) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


COMPLETION = Form("text_completion", "text_completion", "cmpl", lambda found: {"max_tokens": TOKENS} | found, choice, choice)


def renamed(error: BadInput) -> BadInput:
    return BadInput(str(error).replace("max_new_tokens", "max_tokens"))


async def complete(server: Server, request: Request, form: Form = COMPLETION) -> Response:
    from tasks.serving.server import answered, gather_or_cancel, unless_gone

    limits = server.limits
    async with asyncio.timeout(limits.timeout):
        name, inputs, stops, stream = asked(server, form.read(given_of(json_of(await body_of(request, limits.body)))))
        request.path_params["model"] = name  # for the metrics
        try:
            items = await asyncio.to_thread(lambda: [server.models[name].read(one) for one in inputs])
        except BadInput as error:
            raise renamed(error) from None
        for item in items if stops else ():
            item.pieces = until(item.pieces, stops)
        head = {"id": f"{form.letters}-{uuid.uuid4().hex}", "object": form.kind, "created": int(time.time()), "model": name}
        if stream:
            return await begun(server, name, items[0], head | {"object": form.kind_of_piece}, form)
        with server.places(len(items)):
            rows = await unless_gone(request, gather_or_cancel(server.written(name, item) for item in items))
    choices = [form.whole(row["text"], row["finish_reason"], n) for n, row in enumerate(rows)]
    return answered(head | {"choices": choices, "usage": usage(server.models[name], items)})


def usage(model: Any, items: list[Writing]) -> dict[str, int]:
    read, wrote = sum(len(model.tokenizer.encode(one.prompt)) for one in items), sum(one.tokens for one in items)
    return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}


async def begun(server: Server, name: str, item: Writing, head: dict[str, Any], form: Form) -> Response:
    """The first piece is waited for, so that what fails at once has a status of its own. Errors: `Busy`."""
    from tasks.serving.server import Events

    async with contextlib.AsyncExitStack() as held:
        held.enter_context(server.places(1))
        pieces = await held.enter_async_context(aclosing(server.pieces(name, item)))
        first = await anext(pieces, None)
        response = Events(events(server, name, item, head, form, first, pieces), media_type="text/event-stream",
                          headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})  # fmt: skip
        response.held = held.pop_all()
    return response


async def events(
    server: Server, name: str, item: Writing, head: dict[str, Any], form: Form, piece: str | None, pieces: Any
) -> AsyncIterator[bytes]:
    """piece: the first one, None where there is none."""
    last = asyncio.get_running_loop().time() + server.limits.timeout
    try:
        while piece is not None:
            if piece:
                yield event(head | {"choices": [form.piece(piece, None)]})
            async with asyncio.timeout_at(last):
                piece = await anext(pieces, None)
        reason = "stop" if item.ended else "length"
        yield event(head | {"choices": [form.piece("", reason)], "usage": usage(server.models[name], [item])})
    except TimeoutError:
        yield event({"error": {"message": f"not done within {server.limits.timeout:g} seconds", "type": "server_error"}})
    except Busy as error:
        yield event({"error": {"message": f"too much to do: {error}", "type": "server_error"}})
    except Exception as error:
        traceback.print_exception(error, file=sys.stderr)
        yield event({"error": {"message": "the model failed on this input: the server's log says how", "type": "server_error"}})
    yield b"data: [DONE]\n\n"


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"


def settings_of(server: Server) -> dict[str, Schema]:
    """The schemas of a completion's parts, all of which its answer knows."""
    models = [model for model in server.models.values() if isinstance(model, Generations)]
    ours, prompt = models[0].settings(), schemas.text(models[0].text)
    stop = schemas.text(minLength=1, maxLength=STOP)
    asks = {
        "model": schemas.one_of(*writers(server)),
        "prompt": schemas.either(prompt, schemas.listed(prompt, 1, server.limits.queue)),
        "max_tokens": ours["max_new_tokens"] | {"default": TOKENS},
        "temperature": ours["temperature"] | {"description": "0 takes the likeliest token each time"},
        "n": schemas.integer(minimum=1, maximum=CHOICES, default=1),
        "stop": schemas.either(stop, schemas.listed(stop, 0, STOPS)),
        "stream": {"type": "boolean", "default": False},
        "stream_options": {"type": "object"},
        **{name: ours[name] for name in Generations.SETTINGS if name not in ("temperature", "max_new_tokens")},
        **{name: {} if value is ... else {"const": value} for name, value in NEUTRAL.items()},
    }
    asks["temperature"] = {key: x for key, x in asks["temperature"].items() if key != "exclusiveMinimum"} | {"minimum": 0}
    return asks


def described(server: Server) -> tuple[Schema, Schema]:
    """The schemas of a request and of an answer that is not streamed."""
    return request_of(settings_of(server), ["model"]), answer_of(COMPLETION.kind, {"text": schemas.text()})


def request_of(asks: dict[str, Schema], needed: Sequence[str]) -> Schema:
    """An object of these settings, all but those needed and the prompt may be null."""
    nullable = {
        name: schemas.either(one, {"type": "null"}) for name, one in asks.items() if name not in (*needed, "prompt") and one
    }
    asks = {**asks, **nullable}
    return schemas.made_of(asks, [name for name in asks if name not in needed])


def answer_of(kind: str, told: dict[str, Schema]) -> Schema:
    """told: of a choice, what was written."""
    count, why = schemas.integer(minimum=0), schemas.one_of("stop", "length", None)
    one = schemas.made_of({"index": count, **told, "logprobs": {"type": "null"}, "finish_reason": why})
    counts = schemas.made_of(dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), count))
    head = {"id": schemas.text(), "object": schemas.one_of(kind), "created": count, "model": schemas.text()}
    return schemas.made_of(head | {"choices": schemas.listed(one), "usage": counts})
