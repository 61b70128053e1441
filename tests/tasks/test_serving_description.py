"""What a server says of itself is true: its OpenAPI description, its page, and the tensors of the Open Inference Protocol."""

from __future__ import annotations

import base64
import copy
import json
import re
from urllib.parse import quote

import pytest

pytest.importorskip("starlette.testclient", reason="serving needs zooproof[serving]")
from asking import INPUTS, PICTURE, client_of, close, error, outputs, pixels
from json_schemas import fits, misfits

from tasks.serving.page import FILES
from tasks.serving.server import Server


@pytest.fixture(scope="module")
def client(loaded):
    with client_of(loaded, wait=0.001) as found:
        yield found


@pytest.fixture(scope="module")
def told(client):
    return client.get("/openapi.json").json()


def asked(told, path):
    """The schemas of a request, and of its answer."""
    found = told["paths"][path]["post"]
    answer = found["responses"]["200"]["content"]["application/json"]["schema"]
    return found["requestBody"]["content"]["application/json"]["schema"], answer


# --------------------------------------------------------------------------------------------------------- the description


def test_every_path_is_there_and_every_route_is_described(told, client, loaded):
    for path, methods in told["paths"].items():
        for method in methods:
            assert client.request(method, path).status_code not in (404, 405), path
        for other in {"get", "post"} - {*methods}:
            assert client.request(other, path).status_code == 405, path
    shapes = {route.path for route in Server(loaded.models).app().routes}
    named = {re.sub(rf"(?<=/models/)({'|'.join(map(quote, loaded.models))})(?=/|$)", "{model}", path) for path in told["paths"]}
    assert named == shapes


@pytest.mark.parametrize("name", INPUTS)
def test_answers_are_as_described_and_examples_work(client, told, name):
    body, answer = asked(told, f"/v1/models/{name}/predict")
    example = told["paths"][f"/v1/models/{name}/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    for asks in (example, {"inputs": INPUTS[name]}):
        assert not [*misfits(asks, body)]
        response = client.post(f"/v1/models/{name}/predict", json=asks)
        assert response.status_code == 200, response.text
        assert not [*misfits(response.json(), answer)]


def mutants(value):
    """The same with one thing wrong: another type, one more part, one fewer."""
    yield from (None, 7.5, True, "x", [], {}, ["x"], {"x": 1}, -1, 10**30)
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        for one in mutants(part):
            changed = copy.deepcopy(value)
            changed[key] = one
            yield changed
        if isinstance(value, dict):
            yield {other: one for other, one in value.items() if other != key}
    if isinstance(value, dict):
        yield {**value, "unknown": 1}


@pytest.mark.parametrize("name", [*INPUTS, "completions", "chat"])
def test_what_the_description_forbids_is_refused_and_the_rest_is_not(client, told, name):
    """Whatever it says is right is answered, or has a reason that a schema cannot tell."""
    if name == "chat":
        said = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
        path, body = "/v1/chat/completions", {"model": "generation", "messages": said, "max_tokens": 1, "stop": [*" eta"]}
    elif name == "completions":
        path, body = (
            "/v1/completions",
            {
                "model": "generation",
                "prompt": "a",
                "max_tokens": 1,
                "temperature": 0,
                "n": 1,
                "stop": ["b"],
                "stream_options": {},
            },
        )
    else:
        path, body = f"/v1/models/{name}/predict", {"inputs": INPUTS[name][:1]}
    schema, answer = asked(told, path)
    wrong = right = 0
    for mutant in mutants(body):
        response = client.post(path, json=mutant)
        if fits(mutant, schema):
            right += 1
            beyond = response.status_code == 422 and any(word in response.text for word in BEYOND)
            assert response.status_code == 200 or beyond, (mutant, response.text)
            assert beyond or not [*misfits(response.json(), answer)]
        else:
            wrong += 1
            assert response.status_code in (404, 422), (mutant, response.text)
            error(response, response.status_code)
    assert wrong > 20


BEYOND = ("picture in base64", "cannot be read as an image", "images, at most", "is no class", "trained without classes",
          "must be below 2**63", "are the same: give one")  # fmt: skip
"""Of what is refused though it fits its schema."""


def test_a_token_and_errors_are_described(loaded, client, told):
    assert "security" not in told
    with client_of(loaded, token="secret") as guarded:
        found = guarded.get("/openapi.json").json()
        assert found["security"] == [{"token": []}]
        for path, methods in found["paths"].items():
            for method, operation in methods.items():
                free = operation.get("security") == []
                assert (guarded.request(method, path).status_code == 401) is not free, path
    assert fits(client.post("/v1/models/text/predict", json=1).json(), told["components"]["schemas"]["Error"])
    assert not [
        *misfits(
            client.get("/v1/models").json(),
            told["paths"]["/v1/models"]["get"]["responses"]["200"]["content"]["application/json"]["schema"],
        )
    ]


def test_names_of_any_kind_have_paths(loaded):
    models = {"a b/ü": loaded.models["text"]}
    with client_of(Server(models)) as client:
        (path,) = [one for one in client.get("/openapi.json").json()["paths"] if one.endswith("predict")]
        assert path.isascii()


# ------------------------------------------------------------------------------------------------------------- the page


def test_the_page_loads_nothing_from_elsewhere(client):
    page, style, script = (client.get(path) for path in FILES)
    for response, kind in ((page, "text/html"), (style, "text/css"), (script, "text/javascript")):
        assert response.headers["content-type"] == f"{kind}; charset=utf-8"
        assert "default-src 'none'; script-src 'self'" in response.headers["content-security-policy"]
        assert "//" not in re.sub(r"(^|\s)// .*$", "", response.text, flags=re.MULTILINE), "an address of somebody else"
    assert {*re.findall(r'(?:src|href)="([^"]+)"', page.text)} == {"data:,", "page.css", "page.js", "openapi.json"}
    assert "innerHTML" not in script.text
    assert " style=" not in page.text, "which its own policy forbids"
    assert "prefers-color-scheme: dark" in style.text
    assert 'name="viewport"' in page.text


def test_the_page_has_a_form_for_each_task_and_finds_what_it_looks_for(client, told):
    page, script = client.get("/").text, client.get("/page.js").text
    tasks = {row["task"] for row in client.get("/v1/models").json()["data"]}
    assert {*re.findall(r'data-task="([\w-]+)"', page)} == tasks
    ids = re.findall(r' id="(\w+)"', page)
    assert len(ids) == len({*ids})
    assert {*re.findall(r'\$\("(\w+)"\)', script)} <= {*ids}
    assert {*re.findall(r'<label for="(\w+)"', page)} <= {*ids}
    unlabelled = [one for one in re.findall(r'<(?:input|textarea|select|canvas) id="(\w+)"', page) if f'for="{one}"' not in page]
    for one in unlabelled:  # within a label, or with a name of its own
        assert re.search(rf'<label[^>]*>[^/]*<input id="{one}"|<canvas id="{one}"[^>]*aria-label=', page), one
    for path in re.findall(r'ask\("([\w/]+)"', script):
        assert f"/{path}" in told["paths"]
    for what in re.findall(r'path\("(\w+)"\)', script):
        assert f"/v1/models/image/{what}" in told["paths"]
        assert f"/v1/models/translation/{what}" in told["paths"]


def test_what_speaks_for_a_class_is_told(client, told):
    _, answer = asked(told, "/v1/models/image/explain")
    response = client.post("/v1/models/image/explain", json={"inputs": [PICTURE]})
    assert not [*misfits(response.json(), answer)]
    (found,) = response.json()["outputs"]
    (plain,) = outputs(client, "image", [PICTURE])
    assert close({key: found[key] for key in plain}, plain)
    assert {len(row) for row in found["activation"]} == {len(found["activation"])}
    assert max(map(max, found["activation"])) > 0
    assert (pixels(found["seen"]) == [200, 10, 10]).all()
    files = [("file", ("a.png", base64.b64decode(PICTURE)))]
    assert close(client.post("/v1/models/image/explain", files=files).json()["outputs"], [found])
    assert "does not explain" in error(client.post("/v1/models/text/explain", json={"inputs": ["a"]}), 404)


def test_what_a_translation_looks_at_is_told(client, told):
    _, answer = asked(told, "/v1/models/translation/explain")
    lines = ["eins zwei", "", "drei"]
    response = client.post("/v1/models/translation/explain", json={"inputs": lines})
    assert not [*misfits(response.json(), answer)]
    found = response.json()["outputs"]
    assert close([{"translation": one["translation"]} for one in found], outputs(client, "translation", lines))
    assert found[1] == {"translation": "", "source": [], "target": [], "attention": []}
    for one in (found[0], found[2]):
        assert one["source"][-1] == one["target"][-1] == "</s>"
        assert len(one["attention"]) == len(one["target"])
        for row in one["attention"]:
            assert len(row) == len(one["source"])
            assert sum(row) == pytest.approx(1, abs=1e-4)
    (alone,) = client.post("/v1/models/translation/explain", json={"inputs": lines[2:]}).json()["outputs"]
    assert close(found[2], alone), "neighbours of a batch are not looked at"


# -------------------------------------------------------------------------------------------------------------- tensors


def tensors(model, inputs):
    columns = [[one] if isinstance(one, str) else [*one.values()] if isinstance(one, dict) else one for one in inputs]
    names = {"pair": ["text", "text_pair"], "question": ["question", "context"], "image": ["image"]}.get(model, ["text"])
    rows = zip(names, zip(*columns, strict=True), strict=True)
    return [{"name": n, "datatype": "BYTES", "shape": [len(inputs)], "data": [*data]} for n, data in rows]


@pytest.mark.parametrize("name", ["image", "text", "pair", "token", "question", "translation", "generation"])
def test_tensors_are_answered_as_inputs_are(client, told, name):
    inputs = ["the cat", "the"] if name == "generation" else INPUTS[name]
    body, answer = asked(told, f"/v2/models/{name}/infer")
    asks = {"id": "x", "inputs": tensors(name, inputs)}
    assert not [*misfits(asks, body)]
    response = client.post(f"/v2/models/{name}/infer", json=asks)
    assert not [*misfits(response.json(), answer)]
    assert response.json()["id"] == "x"
    found = {one["name"]: one for one in response.json()["outputs"]}
    wanted = outputs(client, name, inputs)
    assert close([json.loads(one) for one in found["output"]["data"]], wanted)
    about = client.get(f"/v2/models/{name}").json()
    assert [one["name"] for one in about["outputs"]] == [*found]
    assert [one["name"] for one in about["inputs"]] == [one["name"] for one in asks["inputs"]]
    if "scores" in found:
        scores = [one["scores"].get(c, 0.0) for one in wanted for c in about["parameters"]["classes"]]
        assert close(found["scores"]["data"], scores)
        assert found["scores"]["shape"] == [len(inputs), len(about["parameters"]["classes"])]
        assert found["label"]["data"] == [one["label"] for one in wanted]
        part = client.post(f"/v2/models/{name}/infer", json=asks | {"outputs": [{"name": "label"}]}).json()["outputs"]
        assert part == [found["label"]]


def test_a_server_tells_of_itself_in_v2(client):
    assert client.get("/v2").json()["name"] == "zooproof"
    assert client.get("/v2/health/live").status_code == client.get("/v2/health/ready").status_code == 200
    assert client.get("/v2/models/text/ready").json() == {"name": "text", "ready": True}
    assert "no such model" in error(client.get("/v2/models/nowhere"), 404)
    assert "no such model" in error(client.post("/v2/models/nowhere/infer", json={}), 404)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": None}, "inputs must be a list of tensors"),
        ({"inputs": []}, "inputs must be text, got none"),
        ({"inputs": [1]}, "objects with a name, got 1"),
        ({"id": 1}, "id must be a string"),
        ({"nowhere": 1}, "'nowhere' is no part of a request"),
        ({"outputs": [{"name": "x"}]}, "one of output, label, scores"),
        ({"outputs": [{"name": "label"}] * 2}, "each of them once"),
        *(({"outputs": wrong}, "outputs must be objects") for wrong in ("x", {}, "", None, 0, False)),
        ({"name": "x"}, "inputs must be text, got x"),
        ({"datatype": "FP32"}, 'datatype BYTES, got "FP32"'),
        ({"data": "a"}, "data, a list of strings"),
        ({"data": [1]}, "data, a list of strings"),
        ({"data": [], "shape": [0]}, "one shape, [n] of 1 or more"),
        ({"shape": [2]}, "the shape of its data, [1], got [2]"),
        ({"shape": [True]}, "the shape of its data"),
        ({"shape": None}, "the shape of its data"),
    ],
)
def test_wrong_tensors_are_one_sentence(client, change, said):
    (tensor,) = tensors("text", ["a"])
    inner = {key: value for key, value in change.items() if key in tensor}
    outer = {key: value for key, value in change.items() if key not in tensor}
    assert said in error(client.post("/v2/models/text/infer", json={"inputs": [tensor | inner], **outer}), 422)
