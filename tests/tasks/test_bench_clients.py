"""The clients of `bench/servers.py`: each request is counted once, also where connections are lost or the server has gone."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import resource
import socket
import sys
import threading
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
BODY = json.dumps({"inputs": ["a"]}).encode()


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_clients", BENCH / "clients.py")
    found = sys.modules["bench_clients"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    yield found
    del sys.modules["bench_clients"]


@contextlib.contextmanager
def server(answers, connections=10**9):
    """The port of one that answers as `answers(n)` says to the n-th request: bytes, or None to hang up. It takes so many
    connections, then it is gone."""
    with socket.create_server(("127.0.0.1", 0), backlog=2000) as listening:
        numbers, threads = iter(range(10**9)), []

        def serve(one):
            with contextlib.suppress(OSError), one:
                while got := one.recv(65_536):
                    while not got.endswith(BODY):
                        got += one.recv(65_536)
                    body = answers(next(numbers))
                    if body is None:
                        return
                    one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

        def accept():
            with contextlib.suppress(OSError):
                for _ in range(connections):
                    threads.append(threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True))
                    threads[-1].start()
                listening.close()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield listening.getsockname()[1]
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        for one in [accepting, *threads]:
            one.join(60)


def measured(bench, port, number, **options):
    return bench.measure(port, "/", BODY, lambda text: text == b"good", number, **options)


@pytest.mark.parametrize("rate", [0, 1e6])
def test_answers_are_counted_and_wrong_ones_are_failures(bench, rate):
    with server(lambda n: b"bad" if n % 5 == 0 else b"good") as port:
        seen = measured(bench, port, 50, clients=4, rate=rate)
    assert (len(seen.times), seen.failed) == (40, 10)
    assert seen.times == sorted(seen.times)
    assert 0 < seen.late(0.5) <= seen.late(0.99) == 1000 * seen.times[-1]


@pytest.mark.parametrize("rate", [0, 1e6])
def test_a_lost_connection_is_replaced(bench, rate):
    """With all of them lost, nothing was asked any more, and the rest was waited for without end."""
    with server(lambda n: None if n < 4 else b"good") as port:
        seen = measured(bench, port, 30, clients=4, rate=rate)
    assert (len(seen.times), seen.failed) == (26, 4)


@pytest.mark.parametrize("rate", [0, 1e6])
def test_a_server_that_has_gone_fails_all_that_is_left(bench, rate):
    with server(lambda n: b"good" if n < 4 else None, connections=4) as port:
        seen = measured(bench, port, 30, clients=4, rate=rate)
    assert (len(seen.times), seen.failed) == (4, 26)


def test_where_all_failed_no_time_is_made_up(bench):
    with server(lambda n: None) as port:
        seen = measured(bench, port, 3, clients=2)
    assert (seen.times, seen.failed, seen.rate) == ([], 3, 0)
    with pytest.raises(ValueError, match="all 3 requests failed"):
        seen.late(0.5)


def test_a_server_that_says_nothing_fails(bench, monkeypatch):
    monkeypatch.setattr(bench, "SILENCE", 0.01)
    go = threading.Event()
    with server(lambda n: go.wait(60) and None) as port:
        seen = measured(bench, port, 3, clients=3)
        go.set()
    assert (seen.times, seen.failed) == ([], 3)


def test_sockets_beyond_the_first_thousand(bench):
    """`select` takes none whose number is 1,024 or more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 1100)), hard))
        with contextlib.ExitStack() as stack:
            try:
                while (last := stack.enter_context(open("/dev/null")).fileno()) < 1024:
                    pass
            except OSError:
                pytest.skip(f"this machine allows fewer open files, {last}")
            with server(lambda n: b"good") as port:
                assert len(measured(bench, port, 3, clients=1).times) == 3
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
