"""Clients that cost little beside the server that they ask: one thread, sockets, requests made up beforehand.

Asyncio's streams take as much of a processor for a request as a quick server does. Where both share two cores, they would be what
is measured.
"""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
from collections import deque
from collections.abc import Callable
from time import perf_counter, process_time
from typing import NamedTuple

SILENCE = 60.0
"""Seconds without a word of the server, after which nobody waits any more."""


class Seen(NamedTuple):
    """times: seconds of each request, from when it was due, the least first. rate: requests a second. spent: seconds of the
    processor that the clients took for a request."""

    times: list[float]
    failed: int
    rate: float
    spent: float

    def late(self, part: float) -> float:
        """Milliseconds within which that part of the requests was answered. Errors: `ValueError` if none was."""
        if not self.times:
            raise ValueError(f"all {self.failed} requests failed")
        return 1000 * self.times[min(int(part * len(self.times)), len(self.times) - 1)]


class Asked:
    """A connection that is kept."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.found, self.due = b"", 0.0

    def fileno(self) -> int:
        return self.socket.fileno()

    def ask(self, request: bytes, due: float) -> None:
        self.found, self.due = b"", due
        self.socket.sendall(request)

    def answer(self) -> tuple[int, bytes] | None:
        """Status and body, once all of it is there. Errors: `OSError`."""
        more = self.socket.recv(65_536)
        if not more:
            raise ConnectionError("the server hung up")
        self.found += more
        head, end, body = self.found.partition(b"\r\n\r\n")
        if not end:
            return None
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        return (int(head[9:12]), body) if len(body) >= length else None


def request_of(port: int, path: str, body: bytes) -> bytes:
    rows = f"POST {path} HTTP/1.1", f"Host: localhost:{port}", "Content-Type: application/json"
    return "\r\n".join((*rows, f"Content-Length: {len(body)}", "", "")).encode() + body


def measure(
    port: int, path: str, body: bytes, right: Callable[[bytes], bool], number: int, clients: int = 32, rate: float = 0
) -> Seen:
    """So many requests. One fails that is answered wrongly, or whose connection is lost, in whose place comes another one; and
    all that are left, once the server says nothing for `SILENCE`.

    Without a rate each client asks again as soon as it is answered. With one, requests are due at random times (a Poisson
    process), whether others are answered or not, and more connections are made where none is free.

    right: tells of an answer's body whether it is right; asked once of bodies that are the same.
    """
    request, draw = request_of(port, path, body), random.Random(0)
    known: dict[bytes, bool] = {}
    times: list[float] = []
    busy: set[Asked] = set()
    asked = 0
    with selectors.DefaultSelector() as open_ones, contextlib.ExitStack() as stack:

        def connected() -> Asked:
            one = Asked(port)
            stack.callback(one.socket.close)
            open_ones.register(one, selectors.EVENT_READ)
            return one

        def lose(one: Asked) -> None:
            open_ones.unregister(one)
            one.socket.close()

        free = deque(connected() for _ in range(clients))
        start, spent = perf_counter(), process_time()
        due = start
        while True:
            now = perf_counter()
            while asked < number and (now >= due if rate else len(busy) < clients):
                asked += 1
                try:
                    one = free.popleft() if free else connected()
                    try:
                        one.ask(request, due if rate else now)
                        busy.add(one)
                    except OSError:
                        lose(one)
                        raise
                except OSError:
                    pass  # which is a failure, as all are that have no time
                due += draw.expovariate(rate) if rate else 0
                now = perf_counter()
            if asked == number and not busy:
                break
            pause = max(0.0, due - now) if rate and asked < number else SILENCE
            ready = open_ones.select(pause)
            if not ready and pause == SILENCE:
                break
            for one in [key.fileobj for key, _ in ready]:
                try:
                    found = one.answer()
                except OSError:
                    lose(one)
                    (busy if one in busy else free).remove(one)
                    continue
                if found is None:
                    continue
                late = perf_counter() - one.due
                busy.remove(one)
                free.append(one)
                status, text = found
                if status == 200 and text not in known:
                    known[text] = right(text)
                if status == 200 and known[text]:
                    times.append(late)
        seconds, spent = perf_counter() - start, process_time() - spent
    return Seen(sorted(times), number - len(times), len(times) / seconds, spent / number)
