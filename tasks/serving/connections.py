"""Connections that cost no more than they are worth: whoever is slow to ask, or to take an answer, is hung up on."""

from __future__ import annotations

from asyncio import TimerHandle, Transport
from typing import Any

from uvicorn.protocols.http import auto

HEAD = 65_536
"""Bytes that a request may have before its body, at most."""


def patient(seconds: float) -> Any:
    """uvicorn's protocol. It waits so long for the head of a request, and for a client to take what was sent; bodies have
    the time limit of requests."""

    base: Any = auto.AutoHTTPProtocol  # which is one of two, of what is installed

    class Connection(base):
        idle: TimerHandle | None = None
        stuck: TimerHandle | None = None
        head, begun = 0, False

        def connection_made(self, transport: Transport) -> None:
            super().connection_made(transport)
            self.watch()

        def data_received(self, data: bytes) -> None:
            self.head += len(data)
            super().data_received(data)
            self.watch()
            if self.asks and self.head > HEAD and (self.begun or not (self.cycle and self.cycle.more_body)):
                self.transport.abort()

        def on_message_begin(self) -> None:
            """Of httptools, which bounds no heads: what follows is none of the body that was answered before its end."""
            super().on_message_begin()
            self.head, self.begun = 0, True

        @property
        def asks(self) -> bool:
            """Whether a request is still to come, or the rest of one that was answered before its end."""
            return self.cycle is None or self.cycle.response_complete

        def watch(self) -> None:
            if not self.asks:
                self.head, self.begun = 0, False
                self.idle = stopped(self.idle)
            elif self.idle is None:
                self.idle = self.loop.call_later(seconds, self.late)

        def late(self) -> None:
            self.idle = None
            if self.asks:
                self.transport.abort()

        def pause_writing(self) -> None:
            super().pause_writing()
            self.stuck = self.stuck or self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self.stuck = stopped(self.stuck)

        def connection_lost(self, exc: Exception | None) -> None:
            self.idle, self.stuck = stopped(self.idle), stopped(self.stuck)
            super().connection_lost(exc)

    return Connection


def stopped(timer: TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
