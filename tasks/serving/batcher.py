"""Dynamic batching: what many clients ask for one by one is computed together, in a thread, while the event loop goes on.

A batch starts when it is full, or when its first item has waited long enough; what comes while one is computed makes up the
next, so that many who ask share batches without a wait. No item suffers from another one: a batch that fails is repeated one by
one, and whoever no longer waits frees the place.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from time import perf_counter
from typing import Any

STEADY = 100
"""Batches in a row that must be quick before one is computed where it holds up everything else."""
TURNS = 3
"""Of the event loop between two of these: answers are written, requests read, and what they ask comes to wait."""


class Busy(Exception):
    """The queue has no room, or nothing is taken any more."""


class Batcher:
    """Use it as ``async with Batcher(call) as batcher: found = await batcher.answers(items)``.

    call:      items -> as many answers, in their order; pure, for it may be called again with each item of a batch that
               failed. An answer that is an `Exception` is raised for its own item, and nothing is repeated.
    max_batch: items at a time. max_wait: seconds that the first item of a batch waits for others.
    queue:     items that wait at most.
    inline:    seconds. Once `STEADY` batches in a row took so long at most, those that are no larger than they were are computed
               in the event loop's own thread, until one takes longer: two threads that both want Python's lock cost more than
               such a batch. All others are computed in the thread.
    size:      item -> what its time grows with, no faster than the square; together, each takes the time of the largest.
    seen:      told of each batch: how many items, and how many seconds.
    """

    def __init__(
        self,
        call: Callable[[Sequence[Any]], Sequence[Any]],
        *,
        max_batch: int = 16,
        max_wait: float = 0.0,
        queue: int = 128,
        inline: float = 0.0,
        size: Callable[[Any], int] = lambda item: 1,
        seen: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch must be 1 or more, got {max_batch}")
        self.call, self.max_batch, self.max_wait, self.queue, self.seen = call, max_batch, max_wait, queue, seen
        self.inline, self.size = inline, size
        self.quick, self.largest = 0, (0, 0)  # batches in a row, and how large they were at most
        self.waiting: dict[asyncio.Future[Any], tuple[Any, float]] = {}  # items and when they came, the oldest first
        self.more = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="batcher")

    async def __aenter__(self) -> Batcher:
        self.task = asyncio.get_running_loop().create_task(self.work())
        return self

    async def __aexit__(self, *error: object) -> None:
        """Whoever still waits is told that it is `Busy`; the batch in hand is not waited for."""
        task, self.task = self.task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for future in [*self.waiting]:
            give(future, Busy("the server stops"))
        self.thread.shutdown(wait=False, cancel_futures=True)

    @property
    def alive(self) -> bool:
        return self.task is not None and not self.task.done()

    async def answers(self, items: Sequence[Any]) -> list[Any]:
        """The answers to all items, or the first error. Cancelled, it takes back what has not begun.

        Errors: `Busy`, at once, if not all of them have room; whatever `call` raises for one of them.
        """
        if not self.alive:
            raise Busy("the server stops")
        if len(self.waiting) + len(items) > self.queue:
            raise Busy(f"{len(self.waiting)} of {self.queue} places are taken")
        loop, nobody = asyncio.get_running_loop(), not self.waiting
        futures = [loop.create_future() for _ in items]
        for future, item in zip(futures, items, strict=True):
            self.waiting[future] = item, loop.time()
        if nobody or len(self.waiting) >= self.max_batch:
            self.more.set()
        try:
            return [await futures[0]] if len(futures) == 1 else [*await asyncio.gather(*futures)]
        finally:
            for future in futures:
                self.waiting.pop(future, None)
                future.cancel()

    async def work(self) -> None:
        while True:
            await self.full()
            batch = dict(islice(self.waiting.items(), self.max_batch))
            for future in batch:
                del self.waiting[future]
            batch = {future: value for future, value in batch.items() if not future.done()}  # of who has gone this very moment
            if not batch:
                continue
            here = False
            try:
                items = [item for item, _ in batch.values()]
                largest, here = self.known(items)
                if here:
                    found, seconds = self.timed(items)
                else:
                    found, seconds = await asyncio.get_running_loop().run_in_executor(self.thread, self.timed, items)
                self.quick, self.largest = (self.quick + 1, largest) if seconds <= self.inline else (0, (0, 0))
                self.seen(len(batch), seconds)
            except asyncio.CancelledError:
                for future in batch:
                    give(future, Busy("the server stops"))
                raise
            except Exception as error:  # there is no thread to be had
                found = [error] * len(batch)
            for future, answer in zip(batch, found, strict=True):
                give(future, answer)
            for _ in range(TURNS if here else 0):
                await asyncio.sleep(0)

    def known(self, items: list[Any]) -> tuple[tuple[int, int], bool]:
        """(how large batches were with this one, whether there were enough, and this one is no larger)

        Large are a batch's longest item, and that times their number: a batch whose both were seen cannot take much longer.
        """
        longest = max(map(self.size, items))
        largest = max(len(items) * longest, self.largest[0]), max(longest, self.largest[1])
        return largest, self.quick >= STEADY and largest == self.largest

    async def full(self) -> None:
        """Returns when there is a batch to start: it is full, or its first item has waited long enough."""
        loop = asyncio.get_running_loop()
        while len(self.waiting) < self.max_batch:
            self.more.clear()
            if not self.waiting:
                await self.more.wait()
            left = next((came for _, came in self.waiting.values()), loop.time()) + self.max_wait - loop.time()
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.more.wait(), left)

    def timed(self, items: list[Any]) -> tuple[list[Any], float]:
        start = perf_counter()
        return self.attempt(items), perf_counter() - start

    def attempt(self, items: list[Any]) -> list[Any]:
        """In the thread: answers, or the errors in their place."""
        try:
            found = [*self.call(items)]
            if len(found) != len(items):
                raise RuntimeError(f"{len(found)} answers to {len(items)} items")
            return found
        except BaseException as error:  # whatever it is, the thread and the others go on
            return [error] if len(items) == 1 else [self.attempt([item])[0] for item in items]


def give(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():  # nobody waits any more
        return
    if isinstance(answer, Exception) and not isinstance(answer, StopIteration):
        future.set_exception(answer)
    elif isinstance(answer, BaseException):  # which would end the event loop, or which a future refuses
        future.set_exception(RuntimeError(repr(answer)))
    else:
        future.set_result(answer)
