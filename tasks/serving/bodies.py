"""What comes in over HTTP: a body of bounded size, strict JSON, uploaded files; what is wrong is one sentence and a status."""

from __future__ import annotations

import json
import math
from typing import Any

from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request

from tasks.serving.models import BadInput, shown


class Refused(Exception):
    """A status, and why in one sentence."""

    def __init__(self, status: int, why: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(why)
        self.status, self.headers = status, headers


async def body_of(request: Request, most: int) -> bytes:
    """Errors: `Refused` with 413 for more than `most` bytes, which are not read any further."""
    why = f"the body must have {most:,} bytes at most"
    length = header(request, b"content-length") or "0"
    if length.isdecimal() and int(length[:20]) > most:
        raise Refused(413, why)
    found = bytearray()
    async for chunk in request.stream():
        found += chunk
        if len(found) > most:
            raise Refused(413, why)
    return bytes(found)


def header(request: Request, name: bytes) -> str | None:
    """The first one of that name, in small letters; as `request.headers` finds it, which reads all of them each time."""
    for key, value in request.scope["headers"]:
        if key == name:
            return value.decode("latin-1")
    return None


def json_of(body: bytes) -> dict[str, Any]:
    """An object. Errors: `BadInput`, also for NaN, infinities, and strings that are no Unicode text."""
    try:
        found = DECODER.decode(body.decode())
        if b"\\u" in body:  # which alone makes lone surrogates
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeError:
        raise BadInput("the body must be Unicode text in UTF-8, without lone surrogates") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the body must be JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadInput(f"the body must be a JSON object, got {shown(found)}")
    return found


def refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number in it")


def finite(text: str) -> float:
    """Errors: `BadInput` for such as 1e999, which is read as infinity."""
    if not math.isfinite(value := float(text)):
        raise BadInput("a number of the body is too large")
    return value


DECODER = json.JSONDecoder(parse_constant=refuse_constant, parse_float=finite)


async def inputs_of(request: Request, most: int, files: bool) -> list[Any]:
    """The inputs of a request, whose body has `most` bytes at most. files: whether it may be an upload, each file an input."""
    body = await body_of(request, most)
    if (header(request, b"content-type") or "").startswith("multipart/form-data"):
        if not files:
            raise BadInput('only pictures are uploaded: the body must be JSON, {"inputs": [...]}')
        return await uploads(request, body)
    found = json_of(body)
    if {*found} != {"inputs"} or not isinstance(found["inputs"], list) or not found["inputs"]:
        raise BadInput('the body must be {"inputs": [...]} with one input or more, and nothing else')
    return found["inputs"]


async def uploads(request: Request, body: bytes) -> list[bytes]:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        async with Request(request.scope, receive).form(max_files=1000, max_fields=10) as form:
            return [await value.read() for _, value in form.multi_items() if not isinstance(value, str)] or none_there()
    except ClientDisconnect:
        raise
    except BadInput:
        raise
    except Exception as error:  # MultiPartException, which Starlette makes an HTTPException of, and what the parser raises
        why = getattr(error, "message", "") if isinstance(error, MultiPartException) else getattr(error, "detail", "")
        raise BadInput(f"the body is no multipart form{why and f': {why}'}") from None


def none_there() -> Any:
    raise BadInput("the form must have a file or more")
