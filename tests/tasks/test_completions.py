"""Texts as they are written: server-sent events, OpenAI's completions, a client that leaves, a server that is stopped."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import processes
import pytest
from hypothesis import given
from hypothesis import strategies as st

testclient = pytest.importorskip("starlette.testclient", reason="serving needs zooproof[serving]")
from echoes import Echo, server  # noqa: E402

from tasks.serving.server import Gone, unless_gone  # noqa: E402
from tasks.serving.writing import until  # noqa: E402


@pytest.fixture(scope="module")
def client():
    with testclient.TestClient(server().app(), raise_server_exceptions=False) as found:
        yield found


def post(client, **body):
    return client.post("/v1/completions", json={"model": "echo", **body})


def events(text):
    assert text.endswith("\n\n")
    parts = text[:-2].split("\n\n")
    assert all(part.startswith("data: ") for part in parts)
    assert parts.pop() == "data: [DONE]"
    return [json.loads(part[6:]) for part in parts]


def test_a_completion_has_the_shape_of_openais(client):
    found = post(client, prompt="ab", max_tokens=3).json()
    assert found["id"].startswith("cmpl-")
    assert (found["object"], found["model"]) == ("text_completion", "echo")
    assert found["choices"] == [{"index": 0, "text": "aba", "logprobs": None, "finish_reason": "length"}]
    assert found["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    found = post(client, prompt=["ab.", "c"], max_tokens=3, n=1, stop=None, user="x").json()
    assert [(x["index"], x["text"], x["finish_reason"]) for x in found["choices"]] == [(0, "ab", "stop"), (1, "ccc", "length")]
    assert len(post(client, prompt="a").json()["choices"][0]["text"]) == 16


def test_a_stream_is_the_same_text_in_pieces(client):
    response = post(client, prompt="äb", max_tokens=5, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    *pieces, last = events(response.text)
    assert [piece["choices"][0]["text"] for piece in pieces] == [*"äbäbä"]
    assert {piece["choices"][0]["finish_reason"] for piece in pieces} == {None}
    assert len({piece["id"] for piece in [*pieces, last]}) == 1
    assert (last["choices"][0]["finish_reason"], last["choices"][0]["text"]) == ("length", "")
    assert last["usage"]["completion_tokens"] == 5


def test_a_text_ends_before_what_stops_it(client):
    """Also where it comes in several pieces, and where what looked like it turns out to be something else."""
    for stop, text in (("ba", "a"), (["x", "ab"], ""), ("bab.", "ababa"), ("babb", "ababa"), (["b", "aba"], "a")):
        found = post(client, prompt="ab", max_tokens=5, stop=stop).json()
        assert found["choices"][0]["text"] == text, stop
        assert found["choices"][0]["finish_reason"] == ("length" if len(text) == 5 else "stop")
        *pieces, last = events(post(client, prompt="ab", max_tokens=5, stop=stop, stream=True).text)
        assert "".join(piece["choices"][0]["text"] for piece in pieces) == text
        assert last["usage"] == found["usage"]


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3), st.data())
def test_stops_are_found_wherever_pieces_end(text, stops, data):
    """What is written is the text before the first of them that is complete, and nothing of it had to be taken back."""

    def pieces():
        rest = text
        while rest:
            size = data.draw(st.integers(1, len(rest)))
            yield rest[:size]
            rest = rest[size:]
        return 7, False

    def all_of(generator):
        found = []
        while True:
            try:
                found.append(next(generator))
            except StopIteration as end:
                return "".join(found), end.value

    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    written, (_, ended) = all_of(until(pieces(), stops))
    assert (written, ended) == ((text[: min(ends)[1]], True) if ends else (text, False))


def test_several_texts_of_a_prompt_have_seeds_of_their_own(client, monkeypatch):
    seen = []
    read = Echo.read
    monkeypatch.setattr(Echo, "read", lambda self, value: (seen.append(value), read(self, value))[1])
    found = post(client, prompt=["a", "b"], n=2, seed=5, max_tokens=1, stream_options=None).json()["choices"]
    assert [(x["index"], x["text"]) for x in found] == [(0, "a"), (1, "a"), (2, "b"), (3, "b")]
    assert [one["seed"] for one in seen] == [5, 6, 5, 6]


def test_a_fault_is_told_at_once_or_in_the_stream(client, capsys):
    assert post(client, prompt="!", stream=True).status_code == 500
    *pieces, last = events(post(client, prompt="ab!", stream=True).text)
    assert len(pieces) == 2
    said = "the model failed on this input: the server's log says how"
    assert last == {"error": {"message": said, "type": "server_error"}}
    assert capsys.readouterr().err.count("ValueError: a fault") == 2
    assert post(client, prompt="a").status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": None}, 422, "model must be a string"),
        ({"model": "nowhere"}, 404, "no such model: there are echo, other"),
        ({"model": "other"}, 404, "other does not write texts: echo does"),
        ({"stream": 1}, 422, "stream must be true or false"),
        ({"n": 0}, 422, "n must be a whole number from 1 to 16, got 0"),
        ({"n": True}, 422, "n must be a whole number"),
        ({"n": 2, "seed": "x"}, 422, "seed must be a whole number"),
        ({"n": 2, "stream": True}, 422, "and n 1, where it is streamed"),
        ({"stop": ""}, 422, "stop must be a string, or 4 of them at most"),
        ({"stop": ["a"] * 5}, 422, "stop must be a string, or 4 of them at most"),
        ({"stop": {}}, 422, "stop must be a string, or 4 of them at most"),
        ({"echo": True}, 422, "echo is not supported"),
        ({"prompt": 1}, 422, "prompt must be a string"),
        ({"prompt": ["a", "b"], "stream": True}, 422, "one string, and n 1, where it is streamed"),
        ({"nowhere": 1}, 422, "'nowhere' is no setting"),
        ({"max_new_tokens": 1}, 422, "'max_new_tokens' is no setting"),
        ({"temperature": 0, "greedy": False}, 422, "temperature 0 takes the likeliest token"),
    ],
)
def test_what_is_not_there_is_refused(client, body, status, said):
    response = post(client, **{"prompt": "a", **body})
    assert response.status_code == status
    assert said in response.json()["error"]["message"]


# ---------------------------------------------------------------------------------------------------------------- chats


def chat(client, *messages, **body):
    messages = [{"role": role, "content": content} for role, content in messages]
    return client.post("/v1/chat/completions", json={"model": "echo", "messages": messages, **body})


def test_a_chat_has_the_shape_of_openais(client):
    found = chat(client, ("system", "ab"), ("user", "c"), max_tokens=5, n=2).json()
    assert re.fullmatch(r"chatcmpl-\w{32}", found.pop("id"))
    assert isinstance(found.pop("created"), int)
    one = {"message": {"role": "assistant", "content": "ab\nca"}, "logprobs": None, "finish_reason": "length"}
    assert found == {
        "object": "chat.completion", "model": "echo", "choices": [{"index": 0, **one}, {"index": 1, **one}],
        "usage": {"prompt_tokens": 8, "completion_tokens": 10, "total_tokens": 18},
    }  # fmt: skip
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(client, ("user", parts), max_completion_tokens=3).json()["choices"][0]["message"]["content"] == "a\nb"


def test_a_chat_is_streamed_in_pieces(client):
    found = events(chat(client, ("user", "ab"), max_tokens=3, stream=True).text)
    assert {one["object"] for one in found} == {"chat.completion.chunk"}
    assert [one["choices"][0]["delta"].get("content", "") for one in found] == ["a", "b", "a", ""]
    assert [one["choices"][0]["finish_reason"] for one in found] == [None, None, None, "length"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": []}, "messages must be a list"),
        ({"messages": None}, "messages must be a list"),
        ({"messages": ["a"]}, 'and content, got "a"'),
        ({"messages": [{"role": "tool", "content": "a"}]}, "a message must have a role, one of system, developer, user"),
        ({"messages": [{"role": "user", "content": 1}]}, "the content of a message must be a string"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "must be a string"),
        ({"prompt": "a"}, "'prompt' is no setting of a chat"),
        ({"logprobs": True}, "logprobs is not supported"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "are the same: give one"),
        ({"tools": []}, "'tools' is no setting"),
    ],
)
def test_what_a_chat_has_not_is_refused(client, body, said):
    response = chat(client, ("user", "a"), **{"logprobs": False, **body})
    assert response.status_code == 422
    assert said in response.json()["error"]["message"]


def test_places_are_bounded_and_come_back():
    made = server(queue=2)
    with testclient.TestClient(made.app()) as client:
        never = post(client, prompt=["a", "b", "c"])
        assert never.status_code == 422, "however long it waits"
        assert "prompt and n must ask for 2 texts at most, got 3" in never.json()["error"]["message"]
        assert post(client, prompt=["a"] * 100_000, n=16, max_tokens=1).status_code == 422
        made.writing = 1
        full = post(client, prompt=["a", "b"])
        assert (full.status_code, full.headers["retry-after"]) == (503, "1")
        made.writing = 0
        for prompt in ("ab", "!", "ab!"):
            for stream in (False, True):
                with testclient.TestClient(made.app(), raise_server_exceptions=False) as other:
                    post(other, prompt=prompt, stream=stream)
                assert made.writing == 0


@pytest.mark.parametrize("heard", [0, 1, 5])
def test_who_goes_away_frees_the_place(heard):
    """Before a stream that would last for ever has begun, and in its midst; and before an answer."""

    async def play():
        made = server()
        app = made.app()
        gone, sent = asyncio.Event(), []
        if not heard:
            gone.set()
        body = json.dumps({"model": "echo", "prompt": "ab", "max_tokens": 10**9, "stream": True}).encode()
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive():
            if message := next(messages, None):
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)
            if len(sent) == heard:
                assert made.writing == 1
                gone.set()

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b"",
                 "asgi": {"spec_version": "2.3"}}  # fmt: skip
        async with made.lifespan(app):
            await asyncio.wait_for(app(scope, receive, send), 60)
            assert made.writing == 0
            assert not made.batchers["echo"].waiting

            async def receive_none():
                return {"type": "http.disconnect"}

            async def receive_never():
                raise RuntimeError("the connection is lost")

            for one in (receive_none, receive_never):
                with pytest.raises(Gone):
                    await asyncio.wait_for(unless_gone(SimpleNamespace(receive=one), asyncio.Event().wait()), 10)

    asyncio.run(play())


@pytest.mark.processes
def test_a_real_server_streams_and_stops_when_all_is_answered():
    """SIGTERM in the midst of a stream: it is written to its end, nobody new is let in, and the exit code is 0."""
    environment = {**os.environ, "PYTHONPATH": processes.PATH, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "echoes"]
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("serving echo, other at http://127.0.0.1:"), line + process.stderr.read()
        port = int(line.rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/health/ready")
        assert connection.getresponse().read() == b'{"status":"ready"}'
        body = json.dumps({"model": "echo", "prompt": "abc", "max_tokens": 200, "stream": True})
        connection.request("POST", "/v1/completions", body)
        response = connection.getresponse()
        first = response.readline()
        process.send_signal(signal.SIGTERM)
        found = events((first + response.read()).decode())
        assert "".join(x["choices"][0]["text"] for x in found) == ("abc" * 67)[:200]
        connection.close()
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "", "")
    finally:
        process.kill()
        process.communicate()
