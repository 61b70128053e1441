"""The description of a server for programs, OpenAPI 3.1: every path with what it takes and what it answers, model by model."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tasks.serving import chat, completions, open_inference, schemas
from tasks.serving.models import Served
from tasks.serving.pictures import Pictures
from tasks.serving.schemas import Schema

if TYPE_CHECKING:
    from tasks.serving.server import Server

STATUS = {
    401: "The token is missing, or another one", 403: "A page of another origin may not ask", 404: "No such model or path",
    413: "The body is too large", 421: "The server has another name", 422: "What is wrong with the body, in one sentence",
    429: "Too many requests of this client", 500: "The model failed",
    503: "Too much to do, or the server stops", 504: "Not done in time",
}  # fmt: skip
PLAIN = {"text/plain": {"schema": {"type": "string"}}}


def describe(server: Server) -> dict[str, Any]:
    status = schemas.made_of({"status": schemas.text(), "models": schemas.listed(schemas.text())}, ["models"])
    paths: dict[str, Any] = {}
    for path in ("/health/live", "/v2/health/live"):
        paths[path] = {"get": free("The process is alive", as_json(status))}
    for path in ("/health/ready", "/v2/health/ready"):
        ready = free("All models can be asked", as_json(status))
        ready["responses"]["503"] = {"description": "The server starts or stops", "content": as_json(status)}
        paths[path] = {"get": ready}
    paths["/openapi.json"] = {"get": free("This description", as_json({"type": "object"}))}
    for path, kind in (("/", "html"), ("/page.css", "css"), ("/page.js", "javascript")):
        paths[path] = {"get": free("The page to try the models", {f"text/{kind}": {"schema": {"type": "string"}}})}
    paths["/metrics"] = {"get": operation("What is counted, for Prometheus", PLAIN)}
    paths["/v1/models"] = {"get": operation("The models, and what an input of each is", as_json(models()))}
    paths["/v2"] = {"get": operation("The server", as_json({"type": "object"}))}
    if completions.writers(server):
        takes, gives = completions.described(server)
        found = operation("Text that goes on from a prompt, as in OpenAI's API", as_json(gives), as_json(takes))
        takes, gives = chat.described(server)
        talk = operation("Text that goes on from messages, as in OpenAI's API", as_json(gives), as_json(takes))
        for one in (found, talk):
            one["responses"]["200"]["content"] |= {"text/event-stream": {"schema": {"type": "string"}}}
        paths["/v1/completions"] = {"post": found}
        paths["/v1/chat/completions"] = {"post": talk}
    for name, model in server.models.items():
        paths |= paths_of(name, model, server.limits.queue)
    about = {"title": "zooproof", "version": our_version(), "description": "Trained models over HTTP."}
    found: dict[str, Any] = {"openapi": "3.1.0", "info": about, "paths": paths, "components": {"schemas": {"Error": error()}}}
    if server.limits.token:
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"token": []}]
    return found


def paths_of(name: str, model: Served, most: int) -> dict[str, Any]:
    takes, gives = model.schemas()
    path = quote(name, safe="")
    asks = as_json(schemas.made_of({"inputs": schemas.listed(takes, 1, most)}), {"inputs": [model.example]})
    if isinstance(model, Pictures):
        files = schemas.listed(schemas.text(format="binary"), 1)
        asks |= {"multipart/form-data": {"schema": {"type": "object", "additionalProperties": files, "minProperties": 1}}}

    def told(one: Schema) -> dict[str, Any]:
        return as_json(schemas.made_of({"model": schemas.one_of(name), "outputs": schemas.listed(one)}))

    paths = {f"/v1/models/{path}/predict": {"post": operation(f"Answers of {name}: {model.task}", told(gives), asks)}}
    if model.explains:
        explained = operation(f"Answers of {name}, and what speaks for them", told(model.explained_schema()), asks)
        paths[f"/v1/models/{path}/explain"] = {"post": explained}
    takes, gives = open_inference.described(model)
    about, ready = as_json(open_inference.described_model()), as_json({"type": "object"})
    paths[f"/v2/models/{path}"] = {"get": operation(f"Tensors of {name}", about)}
    paths[f"/v2/models/{path}/ready"] = {"get": operation(f"Whether {name} can be asked", ready)}
    paths[f"/v2/models/{path}/infer"] = {"post": operation(f"Answers of {name}, of tensors", as_json(gives), as_json(takes))}
    return paths


def as_json(schema: Schema, example: Any = None) -> dict[str, Any]:
    return {"application/json": {"schema": schema} | ({} if example is None else {"example": example})}


def free(summary: str, content: dict[str, Any]) -> dict[str, Any]:
    """For which no token is asked."""
    return {"summary": summary, "security": [], "responses": {"200": {"description": summary, "content": content}}}


def operation(summary: str, content: dict[str, Any], body: dict[str, Any] | None = None) -> dict[str, Any]:
    wrong = {
        str(code): {"description": why, "content": as_json({"$ref": "#/components/schemas/Error"})}
        for code, why in STATUS.items()
    }
    found: dict[str, Any] = {"summary": summary, "responses": {"200": {"description": summary, "content": content}} | wrong}
    return found | ({"requestBody": {"required": True, "content": body}} if body else {})


def error() -> Schema:
    return schemas.made_of({"error": schemas.made_of({"message": schemas.text(), "type": schemas.text()})})


def models() -> Schema:
    told = {"id": schemas.text(), "object": schemas.one_of("model"), "created": schemas.integer(), "owned_by": schemas.text(),
            "task": schemas.text(), "input": schemas.text(), "about": {"type": "object"}}  # fmt: skip
    return schemas.made_of({"object": schemas.one_of("list"), "data": schemas.listed(schemas.made_of(told))})


def our_version() -> str:
    try:
        return version("zooproof")
    except PackageNotFoundError:  # of a tree that is not installed
        return "0"
