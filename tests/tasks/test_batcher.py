"""The batcher: full or due, never more than its room, and no item suffers from another one. No test waits for a clock."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.serving.batcher import STEADY, Batcher, Busy

FOREVER = 1e6


class Poison(Exception):
    pass


class Double:
    """Doubles numbers, remembers batches, and can be held up; strings are poison."""

    def __init__(self) -> None:
        self.batches: list[list[object]] = []
        self.begun, self.go = threading.Semaphore(0), threading.Event()
        self.go.set()

    def __call__(self, items):
        self.batches.append([*items])
        self.begun.release()
        assert self.go.wait(60)
        if bad := [x for x in items if isinstance(x, str)]:
            raise Poison(bad[0])
        return [2 * x for x in items]


def run(play, **options):
    """What `play(batcher, double)` gives, in an event loop of its own."""

    async def whole():
        double = Double()
        async with Batcher(double, **options) as batcher:
            try:
                return await asyncio.wait_for(play(batcher, double), 60)
            finally:
                double.go.set()

    return asyncio.run(whole())


async def held(batcher, double, item=0):
    """A task whose batch has begun and goes on when `double.go` is set."""
    double.go.clear()
    task = asyncio.create_task(batcher.answers([item]))
    await asyncio.to_thread(double.begun.acquire)
    return task


async def tasks(batcher, *items):
    found = [asyncio.create_task(batcher.answers([item])) for item in items]
    for _ in range(3):
        await asyncio.sleep(0)
    return found


def test_a_full_batch_does_not_wait():
    async def play(batcher, double):
        found = await asyncio.gather(*(batcher.answers([n]) for n in range(6)))
        return found, double.batches

    found, batches = run(play, max_batch=3, max_wait=FOREVER)
    assert found == [[0], [2], [4], [6], [8], [10]]
    assert batches == [[0, 1, 2], [3, 4, 5]]


def test_one_item_alone_starts_when_it_is_due():
    async def play(batcher, double):
        return await batcher.answers([7]), double.batches

    assert run(play, max_batch=100, max_wait=0.001) == ([14], [[7]])


def test_what_came_during_a_batch_is_the_next_one():
    async def play(batcher, double):
        first = await held(batcher, double)
        rest = await tasks(batcher, 1, 2, 3)
        double.go.set()
        await asyncio.gather(first, *rest)
        return double.batches

    assert run(play, max_batch=8, max_wait=0) == [[0], [1, 2, 3]]


def test_the_queue_is_bounded_and_takes_all_or_nothing():
    async def play(batcher, double):
        first = await held(batcher, double)
        rest = await tasks(batcher, 1, 2)
        with pytest.raises(Busy, match="2 of 3 places are taken"):
            await batcher.answers([3, 4])
        assert len(batcher.waiting) == 2
        last = await tasks(batcher, 5)
        double.go.set()
        return await asyncio.gather(first, *rest, *last), double.batches

    found, batches = run(play, max_batch=8, max_wait=0, queue=3)
    assert found == [[0], [2], [4], [10]]
    assert batches == [[0], [1, 2, 5]]


def test_poison_fails_alone():
    async def play(batcher, double):
        return await asyncio.gather(*(batcher.answers([x]) for x in (1, "a", 2, "b")), return_exceptions=True), double.batches

    found, batches = run(play, max_batch=4, max_wait=FOREVER)
    assert [found[0], found[2]] == [[2], [4]]
    assert [(type(x), str(x)) for x in found[1::2]] == [(Poison, "a"), (Poison, "b")]
    assert batches == [[1, "a", 2, "b"], [1], ["a"], [2], ["b"]]


@pytest.mark.parametrize("error", [ValueError, StopIteration, SystemExit, KeyboardInterrupt, asyncio.CancelledError, MemoryError])
def test_no_error_kills_the_batcher(error):
    def call(items):
        if "bad" in items:
            raise error("no")
        return items

    async def play(batcher, _):
        batcher.call = call
        for _ in range(3):
            with pytest.raises(error if error in (ValueError, MemoryError) else RuntimeError, match="no"):
                await batcher.answers(["bad"])
        return await batcher.answers(["good"]), batcher.alive

    assert run(play, max_wait=0) == (["good"], True)


def test_too_few_answers_are_an_error():
    async def play(batcher, _):
        batcher.call = lambda items: items[1:]
        with pytest.raises(RuntimeError, match="0 answers to 1 items"):
            await batcher.answers([1])

    run(play, max_wait=0)


def test_an_answer_may_be_an_error_and_nothing_is_repeated():
    async def play(batcher, _):
        calls = []
        batcher.call = lambda items: (calls.append(items), [Poison(x) if x < 0 else x for x in items])[1]
        found = await asyncio.gather(*(batcher.answers([x]) for x in (1, -1)), return_exceptions=True)
        return [str(x) for x in found], calls

    assert run(play, max_batch=2, max_wait=FOREVER) == (["[1]", "-1"], [[1, -1]])


def test_who_goes_away_frees_the_place():
    async def play(batcher, double):
        first = await held(batcher, double)
        gone, stays = await tasks(batcher, 1, 2)
        gone.cancel()
        await asyncio.wait([gone])
        assert len(batcher.waiting) == 1
        (third,) = await tasks(batcher, 3)
        first.cancel()  # its batch is being computed: nobody takes the answer
        double.go.set()
        return await asyncio.gather(stays, third), double.batches

    assert run(play, max_batch=8, max_wait=0, queue=2) == ([[4], [6]], [[0], [2, 3]])


def test_a_stop_tells_all_who_wait():
    async def play():
        double = Double()
        async with Batcher(double, max_batch=1, max_wait=0) as batcher:
            waiting = [await held(batcher, double), *await tasks(batcher, 1, 2)]
        found = await asyncio.gather(*waiting, return_exceptions=True)
        double.go.set()
        with pytest.raises(Busy):
            await batcher.answers([1])
        return found

    assert [type(x) for x in asyncio.run(play())] == [Busy] * 3


def test_batches_are_told():
    async def play(batcher, _):
        seen = []
        batcher.seen = lambda size, seconds: seen.append((size, seconds >= 0))
        await batcher.answers([1, 2, 3])
        return seen

    assert run(play, max_batch=2, max_wait=0) == [(2, True), (1, True)]


def test_quick_batches_are_computed_in_the_loop_until_one_is_slow():
    took = [1.0, *[0.5] * STEADY, 1.0, 0.6, *[0.5] * STEADY, 0.5]

    async def play(batcher, _):
        threads, times = [], iter(took)
        batcher.call = lambda items: threads.append(threading.get_ident()) or items
        batcher.timed = lambda items: (batcher.attempt(items), next(times))
        for _ in took:
            await batcher.answers([1])
        return [thread == threading.get_ident() for thread in threads]

    assert not any(run(play))
    other = [False] * (STEADY + 1)
    assert run(play, inline=0.5) == [*other, True, *other, True]


@pytest.mark.parametrize(
    ("batches", "wanted"),
    [
        ([[2, 2]] * STEADY + [[2, 2], [2], [1, 1, 1, 1], [1, 1, 1]], [True, True, True, True]),
        ([[2, 2]] * STEADY + [[3], [3], [2, 2, 2], [2, 2, 2]], [False, True, False, True]),
        ([[4]] + [[1, 1, 1]] * STEADY + [[4], [1] * 4, [2] * 3], [True, True, False]),
    ],
)
def test_only_batches_no_larger_than_the_quick_ones_were_are_computed_in_the_loop(batches, wanted):
    async def play(batcher, _):
        threads = []
        batcher.call = lambda items: threads.append(threading.get_ident()) or items
        for items in batches:
            await batcher.answers(items)
        return [thread == threading.get_ident() for thread in threads[-len(wanted) :]]

    assert run(play, inline=FOREVER, size=lambda item: item) == wanted


def test_what_was_quick_is_forgotten_once_one_is_slow():
    took = [*[0.5] * STEADY, 1.0, *[0.5] * STEADY, 0.5, 0.5]

    async def play(batcher, _):
        threads, times = [], iter(took)
        batcher.call = lambda items: threads.append(threading.get_ident()) or items
        batcher.timed = lambda items: (batcher.attempt(items), next(times))
        for item in [*[9] * STEADY, 9, *[2] * STEADY, 9, 9]:
            await batcher.answers([item])
        return [thread == threading.get_ident() for thread in threads[-2:]]

    assert run(play, inline=0.5, size=lambda item: item) == [False, True]


def test_batches_in_the_loop_leave_others_their_turn():
    """Who was answered goes on, and what they ask is in the next batch."""

    async def play(batcher, double):
        batcher.quick, batcher.largest = STEADY, (3, 1)

        async def client(n):
            (twice,) = await batcher.answers([n])
            await asyncio.create_task(batcher.answers([twice + 1]))

        await asyncio.gather(*map(client, range(0, 8, 2)))
        return double.batches

    assert run(play, max_batch=2, inline=FOREVER) == [[0, 2], [4, 6], [1, 5], [9, 13]]
    assert run(play, max_batch=3, inline=FOREVER) == [[0, 2, 4], [6, 1, 5], [9, 13]]


def test_who_has_gone_this_very_moment_is_not_computed():
    async def play(batcher, double):
        first = await held(batcher, double)
        gone, _ = await tasks(batcher, 1, 2)
        future = next(iter(batcher.waiting))
        batcher.seen = lambda size, seconds: future.cancel()  # as a task does that is cancelled, before it goes on
        double.go.set()
        await asyncio.wait([first, gone])
        await batcher.answers([3])
        return double.batches

    assert run(play, max_wait=0) == [[0], [2], [3]]


@given(st.lists(st.lists(st.integers() | st.text(max_size=1), max_size=3), max_size=5), st.integers(1, 4))
def test_everybody_gets_the_own_answers(requests, most):
    async def play(batcher, _):
        return await asyncio.gather(*(batcher.answers(items) for items in requests), return_exceptions=True)

    for items, found in zip(requests, run(play, max_batch=most, max_wait=0), strict=True):
        if bad := [x for x in items if isinstance(x, str)]:
            assert isinstance(found, Poison)
            assert str(found) in bad
        else:
            assert found == [2 * x for x in items]
