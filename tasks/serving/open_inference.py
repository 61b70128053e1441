"""The Open Inference Protocol, V2, in JSON, so that KServe's clients, Triton's and others work here.

An input of a model comes as tensors of strings (BYTES), one for each of `Served.tensors`, of shape [n] for n inputs. Outputs are
"output", what `predict` answers as JSON, and of classifiers "label", and "scores" (FP32, [n, classes]) in the order of the
metadata's `classes`. https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from tasks.serving import schemas
from tasks.serving.bodies import body_of, json_of
from tasks.serving.models import BadInput, Served, shown
from tasks.serving.schemas import Schema

if TYPE_CHECKING:
    from tasks.serving.server import Server

VERSION = "1"
KNOWN = {"id", "parameters", "inputs", "outputs"}


def server() -> dict[str, Any]:
    return {"name": "zooproof", "version": VERSION, "extensions": []}


def classes_of(model: Served) -> list[str]:
    """Of a model whose scores fit a tensor: those of all classes are told."""
    return getattr(model, "classes", []) if model.task.endswith("classification") else []


def model(name: str, found: Served) -> dict[str, Any]:
    inputs = [{"name": one, "datatype": "BYTES", "shape": [-1]} for one in found.tensors]
    outputs = [{"name": "output", "datatype": "BYTES", "shape": [-1]}]
    more: dict[str, Any] = {}
    if classes := classes_of(found):
        outputs += [{"name": "label", "datatype": "BYTES", "shape": [-1]}]
        outputs += [{"name": "scores", "datatype": "FP32", "shape": [-1, len(classes)]}]
        more = {"parameters": {"classes": classes}}
    return {"name": name, "versions": [VERSION], "platform": "zooproof", "inputs": inputs, "outputs": outputs, **more}


async def infer(server: Server, request: Request) -> Response:
    from tasks.serving.server import answered

    name = request.path_params["model"]
    found = server.model(name)
    async with asyncio.timeout(server.limits.timeout):
        asked = json_of(await body_of(request, server.limits.body))
        inputs, wanted = read(name, found, asked)
        answers = await server.replies(request, name, inputs)
    given = {one["name"]: one for one in tensors(found, answers)}
    head = {"model_name": name, "model_version": VERSION} | ({"id": asked["id"]} if "id" in asked else {})
    return answered(head | {"outputs": [given[one] for one in wanted]})


def read(name: str, found: Served, asked: dict[str, Any]) -> tuple[list[Any], list[str]]:
    """Inputs as `predict` takes them, and the names of the outputs that are wanted. Errors: `BadInput`."""
    if unknown := sorted({*asked} - KNOWN):
        raise BadInput(f"{unknown[0]!r} is no part of a request: there are {', '.join(sorted(KNOWN))}")
    if not isinstance(asked.get("id", ""), str):
        raise BadInput("id must be a string")
    if not isinstance(asked.get("inputs"), list):
        raise BadInput("inputs must be a list of tensors")
    given: dict[str, list[str]] = {}
    for one in asked["inputs"]:
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            raise BadInput(f"inputs must be tensors, objects with a name, got {shown(one)}")
        given[one["name"]] = strings(one)
    if {*given} != {*found.tensors} or len(asked["inputs"]) != len(found.tensors):
        raise BadInput(f"inputs must be {' and '.join(found.tensors)}, got {', '.join(given) or 'none'}")
    columns = [given[one] for one in found.tensors]
    if len({len(column) for column in columns}) != 1 or not columns[0]:
        raise BadInput("inputs must have one shape, [n] of 1 or more")
    known = [one["name"] for one in model(name, found)["outputs"]]
    outputs = asked.get("outputs", [])
    names = [one.get("name") if isinstance(one, dict) else None for one in outputs] if isinstance(outputs, list) else [None]
    names = known if outputs == [] else names
    if not all(one in known for one in names) or len({*names}) < len(names):
        raise BadInput(f"outputs must be objects with a name, one of {', '.join(known)}, each of them once")
    return [found.from_tensors(*row) for row in zip(*columns, strict=True)], [str(one) for one in names]


def strings(tensor: dict[str, Any]) -> list[str]:
    name, shape, data = (tensor.get(key) for key in ("name", "shape", "data"))
    if tensor.get("datatype") != "BYTES":
        raise BadInput(f"{name} must have datatype BYTES, got {shown(tensor.get('datatype'))}")
    if not isinstance(data, list) or not all(isinstance(one, str) for one in data):
        raise BadInput(f"{name} must have data, a list of strings")
    if not isinstance(shape, list) or shape not in ([len(data)], [len(data), 1]) or isinstance(shape[0], bool):
        raise BadInput(f"{name} must have the shape of its data, [{len(data)}], got {shown(shape)}")
    return data


def tensors(found: Served, answers: list[Any]) -> list[dict[str, Any]]:
    texts = [json.dumps(one, ensure_ascii=False, allow_nan=False) for one in answers]
    outputs = [tensor("output", "BYTES", [len(texts)], texts)]
    if classes := classes_of(found):
        outputs.append(tensor("label", "BYTES", [len(texts)], [one["label"] for one in answers]))
        scores = [one["scores"].get(name, 0.0) for one in answers for name in classes]
        outputs.append(tensor("scores", "FP32", [len(texts), len(classes)], scores))
    return outputs


def tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def described(found: Served) -> tuple[Schema, Schema]:
    """The schemas of a request and of an answer."""
    count, data = schemas.integer(minimum=1), schemas.listed(schemas.text(), 1)
    tensor = schemas.made_of(
        {"name": schemas.one_of(*found.tensors), "datatype": schemas.one_of("BYTES"), "shape": schemas.listed(count, 1, 2),
         "data": data, "parameters": {"type": "object"}}, ["parameters"],
    )  # fmt: skip
    names = [one["name"] for one in model("", found)["outputs"]]
    wanted = {"type": "object", "properties": {"name": schemas.one_of(*names)}, "required": ["name"]}
    number = len(found.tensors)
    request = {"id": schemas.text(), "parameters": {"type": "object"}, "inputs": schemas.listed(tensor, number, number),
               "outputs": schemas.listed(wanted, 0, len(names))}  # fmt: skip
    values = schemas.listed(schemas.either(schemas.text(), schemas.number()))
    out = {"name": schemas.one_of(*names), "datatype": schemas.one_of("BYTES", "FP32"),
           "shape": schemas.listed(schemas.integer(minimum=0)), "data": values}  # fmt: skip
    answer = {"model_name": schemas.text(), "model_version": schemas.text(), "id": schemas.text(),
              "outputs": schemas.listed(schemas.made_of(out))}  # fmt: skip
    return schemas.made_of(request, ["id", "parameters", "outputs"]), schemas.made_of(answer, ["id"])


def described_model() -> Schema:
    tensor = schemas.made_of(
        {"name": schemas.text(), "datatype": schemas.text(), "shape": schemas.listed(schemas.integer(minimum=-1))}
    )
    return schemas.made_of(
        {"name": schemas.text(), "versions": schemas.listed(schemas.text()), "platform": schemas.text(),
         "inputs": schemas.listed(tensor), "outputs": schemas.listed(tensor), "parameters": {"type": "object"}}, ["parameters"],
    )  # fmt: skip
