"""The page of a server, with which a browser tries its models: three files, and nothing from elsewhere."""

from __future__ import annotations

from functools import partial
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""What a browser may load and do: nothing but what is from here."""
FILES = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css"), "/page.js": ("page.js", "text/javascript")}


async def sent(body: bytes, kind: str, request: Request) -> Response:
    return Response(body, headers=HEADERS, media_type=kind)


def route(path: str) -> Route:
    name, kind = FILES[path]
    return Route(path, partial(sent, files("tasks.serving").joinpath(name).read_bytes(), f"{kind}; charset=utf-8"))


ROUTES = [route(path) for path in FILES]
