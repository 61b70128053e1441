"""The short way of a request that is asked most: the same as the long one, without what nobody needs."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

pytest.importorskip("starlette.testclient", reason="serving needs zooproof[serving]")
import uvicorn
from asking import client_of, error
from echoes import server as echoes
from starlette.requests import Request
from starlette.routing import Match, Route

from tasks import serve
from tasks.serving import server as serving
from tasks.serving.batcher import STEADY
from tasks.serving.bodies import header
from tasks.serving.server import App, Server, asked_most, unless_gone
from tasks.serving.texts import Questions, Texts

PARTS = st.lists(st.sampled_from(["/v1/models", "/", "/predict", "\u00e9", "a", "%2F"]), max_size=4).map("".join)
PATH = PARTS | st.builds("/v1/models/{}/predict".format, PARTS)
NAMES = st.sampled_from([b"host", b"origin", b"content-type", b"hos"])
HEADERS = st.lists(st.tuples(NAMES, st.binary(max_size=3)), max_size=6)


@example("/v1/models/a/a/predict", "POST", "http")
@example("/v1/models/a/predict", "POST", "http")
@given(PATH, st.sampled_from(["POST", "GET", "PUT"]), st.sampled_from(["http", "websocket"]))
def test_the_short_way_is_for_what_the_route_is_for(path, method, kind):
    route = Route("/v1/models/{model}/predict", lambda request: None, methods=["POST"])
    scope = {"type": kind, "method": method, "path": path, "headers": []}
    match, found = route.matches(scope)
    name = found["path_params"]["model"] if match is Match.FULL else ""
    assert asked_most(scope) == name
    assert asked_most(scope | {"root_path": "/v1"}) == "", "it is for Starlette to take it off"


@given(HEADERS, NAMES)
def test_a_header_is_the_one_that_starlette_finds(headers, name):
    request = Request({"type": "http", "headers": headers})
    assert header(request, name) == request.headers.get(name.decode())


def test_layers_are_left_out_and_what_is_wrong_is_told(monkeypatch):
    """Of a model that is not there, and of one that fails; a path below it has the layers, and so has another method."""
    layers = []
    monkeypatch.setattr(App.__mro__[1], "__call__", counted(layers, App.__mro__[1].__call__))
    with client_of(echoes()) as client:
        del layers[:]
        assert "there is no such model" in error(client.post("/v1/models/none/predict", json={"inputs": ["a"]}), 404)
        assert client.post("/v1/models/echo/predict", json={"inputs": ["ab"]}).json()["outputs"][0]["text"] == "abab"
        assert "the model failed" in error(client.post("/v1/models/echo/predict", json={"inputs": ["!"]}), 500)
        assert not layers
        error(client.post("/v1/models/a/echo/predict", json={"inputs": ["a"]}), 404)
        error(client.get("/v1/models/echo/predict"), 405)
        assert layers == ["/v1/models/a/echo/predict", "/v1/models/echo/predict"]


def counted(layers, call):
    async def counting(self, scope, receive, send):
        layers.append(scope.get("path"))
        await call(self, scope, receive, send)

    return counting


def test_nobody_listens_for_the_end_of_a_client_that_is_answered_soon(monkeypatch):
    async def turns(last):
        for _ in range(9):
            await asyncio.sleep(0)
        return last()

    async def play():
        heard = []
        request = SimpleNamespace(receive=lambda: heard.append(1))
        assert await unless_gone(request, turns(lambda: 7)) == 7
        with pytest.raises(ZeroDivisionError):
            await unless_gone(request, turns(lambda: 1 / 0))
        return heard

    monkeypatch.setattr(serving, "WATCH", 1e6)
    assert asyncio.run(play()) == []
    monkeypatch.setattr(serving, "WATCH", 0)
    with pytest.raises(serving.Gone):  # for here nobody is at the other end
        asyncio.run(play())


class Held(Texts):
    """Answers at once, but long texts only when `go` is set."""

    def load(self):
        self.pairs, self.threads, self.went = False, [], []
        self.begun, self.go = threading.Event(), threading.Event()

    def answer(self, items):
        self.threads.append(threading.get_ident())
        if len(items[0][0]) > 9:
            self.begun.set()
            self.went.append(self.go.wait(60))
        return [{"label": "a", "scores": {"a": 1.0}} for _ in items]


@pytest.mark.parametrize("alone", [True, False])
def test_a_long_batch_after_many_short_ones_holds_up_nobody(alone, monkeypatch):
    """It was computed in the event loop, as the short ones are, however long it took."""
    monkeypatch.setattr(serving, "INLINE", 1e6)  # all of them are quick, whatever else the machine does
    model, other = (Held(Path(), "cpu", "fp32", 500, 4) for _ in range(2))
    server = Server({"model": model} if alone else {"model": model, "other": other})
    with client_of(server) as client, ThreadPoolExecutor(1) as pool:

        def ask(text):
            assert client.post("/v1/models/model/predict", json={"inputs": [text]}).status_code == 200

        for _ in range(STEADY + 1):
            ask("a text")
        loop = client.portal.call(threading.get_ident)
        assert [thread == loop for thread in model.threads[-2:]] == [False, alone]
        long = pool.submit(ask, "a" * 10)
        assert model.begun.wait(60)
        assert client.get("/health/live").status_code == 200
        model.go.set()
        long.result()
    assert model.went == [True], "nobody was answered meanwhile"


def test_only_what_has_a_bound_by_its_size_is_computed_in_the_loop():
    """A context is cut into as many windows as there are: its question decides how many."""
    assert (Texts.sized, Questions.sized) == (True, False)
    assert Texts.size(None, ("ab", "cde")) > Texts.size(None, ("ab", "cd")) > Texts.size(None, ("",)) > 0


@pytest.mark.parametrize("frozen_by_the_caller", [False, True])
def test_what_is_there_before_the_first_request_is_no_garbage(frozen_by_the_caller, monkeypatch):
    """A collection among all that was imported took 0.2 s, in which nobody was answered. What the caller froze stays frozen."""
    if frozen_by_the_caller:
        gc.freeze()
    try:
        before_first_request(monkeypatch, gc.get_freeze_count())
    finally:
        gc.unfreeze()


def before_first_request(monkeypatch, before):
    seen = []
    monkeypatch.setattr(serve, "server_of", lambda options: echoes())
    monkeypatch.setattr(uvicorn.Server, "run", lambda self: seen.append((gc.get_freeze_count(), os.environ[serve.TOKENIZERS])))
    for set_to, told in ((None, "false"), ("true", "true")):
        monkeypatch.delenv(serve.TOKENIZERS, raising=False)
        if set_to:
            monkeypatch.setenv(serve.TOKENIZERS, set_to)
        assert serve.main(["here", "--port", "0"]) == 2, "it has not started"
        frozen, tokenizers = seen.pop()
        assert frozen > 10_000
        assert tokenizers == told
        assert gc.get_freeze_count() > 10_000 if before else gc.get_freeze_count() == 0
        assert gc.isenabled()
        assert os.environ.get(serve.TOKENIZERS) == set_to
