"""Whom a server does not answer: other names of its host, pages of other origins, clients that want too much or are too slow."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading

import pytest
from command import one_line

testclient = pytest.importorskip("starlette.testclient", reason="serving needs zooproof[serving]")
import uvicorn  # noqa: E402
from asking import client_of, error  # noqa: E402
from echoes import server as echoes  # noqa: E402

from tasks import serve  # noqa: E402
from tasks.serve import ServeOptions, names_of  # noqa: E402
from tasks.serving import connections  # noqa: E402

BODY = {"model": "echo", "prompt": "a", "max_tokens": 1}
OWN = ("localhost", "127.0.0.1:8000", "[::1]:8000", "LocalHost:1")
OTHERS = ("evil.example", "127.0.0.1.evil.example:8000", "", "[::2]", "localhost.evil.example")


# ------------------------------------------------------------------------------------------------- names and origins


@pytest.mark.parametrize(
    ("host", "strict"), [("127.0.0.1", 1), ("localhost", 1), ("::1", 1), ("127.0.0.2", 1), ("0.0.0.0", 0), ("a.b", 0)]
)
def test_a_server_of_this_machine_answers_to_its_own_names(host, strict):
    """Else a page of somebody else's, whose name is made to mean this machine, could read what the models say."""
    names = names_of(host)
    assert bool(names) == bool(strict)
    with client_of(echoes(), hosts=names) as client:
        for name in OWN:
            for path in ("/v1/models", "/openapi.json"):
                assert client.get(path, headers={"Host": name}).status_code == 200
            assert client.post("/v1/completions", json=BODY, headers={"Host": name}).status_code == 200
        for name in OTHERS:
            for path in ("/v1/models", "/openapi.json", "/metrics", "/v2"):
                assert client.get(path, headers={"Host": name}).status_code == (421 if strict else 200)
            response = client.post("/v1/completions", json=BODY, headers={"Host": name})
            assert response.status_code == (421 if strict else 200)
            assert client.get("/health/ready", headers={"Host": name}).status_code == 200, "probes come by address"


def test_further_names_are_allowed_and_all_others_are_not():
    for host in ("0.0.0.0", "127.0.0.1"):
        with client_of(echoes(), hosts=names_of(host, ["Models.example.org"])) as client:
            for name in (*OWN, "models.example.org", "models.example.org:8000"):
                assert client.get("/v1/models", headers={"Host": name}).status_code == 200
            for name in (*OTHERS, "example.org"):
                assert "--hosts gives it further names" in error(client.get("/v1/models", headers={"Host": name}), 421)


def test_a_page_of_another_origin_cannot_ask():
    """A form or a fetch of another page sends its origin, and needs nobody's leave for text/plain."""
    plain = {"Host": "localhost:8000", "Content-Type": "text/plain"}
    with client_of(echoes(), hosts=names_of("127.0.0.1", ["a.example"]), origins=("a.example",)) as client:
        for origin in ("http://localhost:8000", "http://LOCALHOST:8000", "https://a.example", "http://a.example:9"):
            assert client.post("/v1/completions", json=BODY, headers=plain | {"Origin": origin}).status_code == 200
        for origin in ("null", "http://evil.example", "http://localhost:3000", "http://localhost", "http://b.a.example", "", "x"):
            for path in ("/v1/completions", "/v1/chat/completions", "/v1/models/echo/predict", "/v2/models/echo/infer"):
                response = client.post(path, json=BODY, headers=plain | {"Origin": origin})
                assert "a page of another origin may not ask" in error(response, 403)
            assert "access-control-allow-origin" not in client.get("/v1/models", headers=plain | {"Origin": origin}).headers
    with client_of(echoes(), token="secret") as client:
        given = {"Origin": "http://evil.example", "Authorization": "Bearer secret"}
        assert client.post("/v1/completions", json=BODY, headers=given).status_code == 200


def test_bad_names_are_one_line(capsys):
    for name in ("http://a", "a:1", "a b", ""):
        said = one_line(capsys, serve.main, "nowhere", f"--hosts={name}")
        assert f"--hosts must be names such as models.example.org, without scheme and port, got {name!r}" in said
    assert ServeOptions(run=["x"], device="cpu", hosts=["a.example", "[::1]"]).hosts == ["a.example", "[::1]"]


# ------------------------------------------------------------------------------------------------------- one client alone


def test_a_client_has_so_many_requests_in_work():
    """The third gets 429, whoever else comes is served, and each that ends makes room, whichever way it ends."""

    async def play():
        made = echoes(per_client=2)
        app, gone = made.app(), asyncio.Event()
        asks = json.dumps(BODY | {"prompt": "ab", "max_tokens": 10**9, "stream": True}).encode()

        async def ask(body, address="1.2.3.4", begun=lambda: None, wait=gone.wait):
            messages, statuses = iter([{"type": "http.request", "body": body, "more_body": False}] if body else []), []

            async def receive():
                if message := next(messages, None):
                    return message
                await wait()
                return {"type": "http.disconnect"}

            async def send(message):
                statuses.append(message.get("status"))
                begun()

            scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b"",
                     "client": (address, 1), "asgi": {"spec_version": "2.3"}}  # fmt: skip
            await app(scope, receive, send)
            return statuses[0]

        short, forever = json.dumps(BODY).encode(), asyncio.Event().wait
        async with made.lifespan(app):
            streams, began = [], []
            for _ in range(2):
                event = asyncio.Event()
                streams.append(asyncio.create_task(ask(asks, begun=event.set)))
                began.append(event.wait())
            await asyncio.gather(*began)
            assert await ask(short, wait=forever) == 429
            assert await ask(short, "5.6.7.8", wait=forever) == 200
            assert made.clients == {"1.2.3.4": 2}
            gone.set()
            assert await asyncio.gather(*streams) == [200, 200]
            assert not made.clients
            for body, status in ((short, 200), (b"{", 422), (b'{"model": "echo", "prompt": "!"}', 500)) * 2:
                assert await ask(body, wait=forever) == status
            assert not made.clients
            cut = asyncio.create_task(ask(b"", wait=forever))  # its body does not come
            while not made.clients:
                await asyncio.sleep(0)
            cut.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await cut
            assert not made.clients

    asyncio.run(asyncio.wait_for(play(), 60))


# ------------------------------------------------------------------------------------------------------------ slow clients

REQUEST = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


def listening(play, slow, app=None, idle=1):
    """`play(connect, server)` beside a server that listens at a free port."""

    async def whole():
        config = uvicorn.Config(
            app or echoes().app(), port=0, log_level="critical", http=connections.patient(slow), timeout_keep_alive=idle
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.001)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            await play(lambda: asyncio.open_connection("127.0.0.1", port), server)
        finally:
            server.should_exit = True
            await task

    asyncio.run(asyncio.wait_for(whole(), 60))


async def hung_up(reader):
    """Waits until the server has closed the connection, and gives what it has said before."""
    with contextlib.suppress(ConnectionError):
        return await reader.read()
    return b""


@pytest.mark.parametrize("sent", [b"", b"GET /health/live HT", REQUEST[:-2], REQUEST + REQUEST[:-2]])
def test_who_does_not_come_to_the_point_is_hung_up_on(sent):
    async def play(connect, server):
        reader, writer = await connect()
        writer.write(sent)
        said = await hung_up(reader)
        assert said.count(b"200 OK") == sent.count(REQUEST)
        writer.close()

    listening(play, 2 if REQUEST in sent else 0.3)  # long enough for a request to come on a busy machine


def test_drops_do_not_help():
    """A header a little at a time: the clock is that of the whole head."""

    async def play(connect, server):
        reader, writer = await connect()
        writer.write(REQUEST[:-2])
        closed = asyncio.create_task(hung_up(reader))
        with contextlib.suppress(ConnectionError):
            while not closed.done():
                writer.write(b"a: b\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        assert await closed == b""
        writer.close()

    listening(play, 0.3)


@pytest.mark.parametrize("before", [b"", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n"])
def test_a_head_without_end_is_refused(before):
    """Also after a request that was answered before its body came."""

    async def play(connect, server):
        reader, writer = await connect()
        if before:
            writer.write(before)
            assert b"a bearer token is needed" in await reader.readuntil(b"}}")
        writer.write(b"x" * bool(before) + REQUEST[:-2] + b"a: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                writer.write(b"x" * 10_000)
                await writer.drain()
                await asyncio.sleep(0.001)
        assert b"200 OK" not in await hung_up(reader)
        writer.close()

    listening(play, 600, echoes(token="secret").app(), idle=600)


def test_who_takes_nothing_is_hung_up_on():
    async def play(connect, server):
        for taken_on in (True, False):
            reader, writer = await connect()
            writer.write(REQUEST)
            assert b"200 OK" in await reader.readuntil(b"live")
            (connection,) = server.server_state.connections
            connection.pause_writing()  # as the transport does when the client reads too little
            if taken_on:
                connection.resume_writing()
                assert connection.stuck is None
            else:
                await hung_up(reader)
            writer.close()
            while server.server_state.connections:
                await asyncio.sleep(0.001)

    listening(play, 2, idle=600)


def test_who_waits_for_an_answer_or_sends_a_body_is_not_slow():
    """Longer than a head may take, in body and model: these have limits of their own."""
    made, go = echoes(), threading.Event()
    answer = made.models["echo"].answer
    made.models["echo"].answer = lambda items: (go.wait(60), answer(items))[1]

    async def play(connect, server):
        reader, writer = await connect()
        for _ in range(2):
            go.clear()
            body = json.dumps(BODY).encode()
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
            for n in range(len(body)):
                writer.write(body[n : n + 1])
                await asyncio.sleep(0.003)
            await asyncio.sleep(1.5)
            go.set()
            assert b"200 OK" in await reader.readuntil(b'"total_tokens":2}}')
        writer.close()

    listening(play, 1, made.app())
