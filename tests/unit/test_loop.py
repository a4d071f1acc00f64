"""The event loop: descriptors, timers, coroutines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from time import monotonic

import pytest

from cloche.base.loop import READ, WRITE, Future, Loop, read_some


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_coroutines_wait_for_futures(loop: Loop) -> None:
    first, second = Future(), Future()

    async def add() -> int:
        return int(await first) + int(await second)

    outcome = loop.start(add())
    second.set(2)
    assert not outcome.done
    loop.call_later(0, lambda: first.set(1))
    assert loop.run_until(outcome) == 3


def test_errors_reach_whoever_waits(loop: Loop) -> None:
    cause = Future()

    async def inner() -> None:
        await cause

    async def outer() -> str:
        try:
            await loop.start(inner())
        except KeyError as error:
            return f"caught {error}"
        return "nothing"

    outcome = loop.start(outer())
    cause.fail(KeyError("x"))
    assert loop.run_until(outcome) == "caught 'x'"
    failed = loop.start(inner())
    with pytest.raises(KeyError):
        loop.run_until(failed)


def test_a_future_is_completed_once() -> None:
    future = Future()
    calls: list[object] = []
    future.on_done(lambda done: calls.append(done.value))
    future.set(1)
    future.set(2)
    future.fail(KeyError())
    future.on_done(lambda done: calls.append(done.value))
    assert (future.result(), calls) == (1, [1, 1])


def test_timers_run_in_the_order_in_which_they_are_due(loop: Loop) -> None:
    order: list[str] = []
    end = Future()
    loop.call_later(0.03, lambda: end.set())
    loop.call_later(0.02, lambda: order.append("second"))
    loop.call_later(0.01, lambda: order.append("first"))
    loop.call_later(0.015, lambda: order.append("never")).cancel()
    started = monotonic()
    loop.run_until(end)
    assert order == ["first", "second"]
    assert monotonic() - started >= 0.03


def test_descriptors_are_watched_until_told_otherwise(loop: Loop) -> None:
    read_end, write_end = os.pipe()
    seen: list[bytes] = []
    enough = Future()

    def readable(events: int) -> None:
        assert events & READ
        seen.append(os.read(read_end, 1))
        if len(seen) == 2:
            loop.unwatch(read_end)
            enough.set()

    loop.watch(read_end, READ, readable)
    os.write(write_end, b"abc")
    loop.run_until(enough)
    loop.call_later(0.01, lambda: None)
    loop.run_once()
    assert seen == [b"a", b"b"]
    loop.unwatch(read_end)  # harmless
    os.close(read_end)
    os.close(write_end)


def test_a_second_watch_changes_events_and_handler(loop: Loop) -> None:
    read_end, write_end = os.pipe()
    seen: list[str] = []
    loop.watch(write_end, READ, lambda _: seen.append("read"))
    loop.watch(write_end, WRITE, lambda _: seen.append("write"))
    loop.run_once()
    assert seen == ["write"]
    os.close(read_end)
    os.close(write_end)


def test_a_handler_may_unwatch_another_that_is_ready_too(loop: Loop) -> None:
    pipes = [os.pipe(), os.pipe()]
    called: list[int] = []

    def ready(which: int) -> None:
        called.append(which)
        for read_end, _ in pipes:
            loop.unwatch(read_end)

    for number, (read_end, write_end) in enumerate(pipes):
        os.write(write_end, b"x")
        loop.watch(read_end, READ, lambda _, number=number: ready(number))  # type: ignore[misc]
    loop.run_once()
    assert len(called) == 1
    for fds in pipes:
        for fd in fds:
            os.close(fd)


def test_a_regular_file_cannot_be_watched(loop: Loop) -> None:
    fd = os.memfd_create("file")
    with pytest.raises(PermissionError):
        loop.watch(fd, READ, lambda _: None)
    os.close(fd)


def test_read_some() -> None:
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    assert read_some(read_end) is None
    os.write(write_end, b"abc")
    assert read_some(read_end, 2) == b"ab"
    os.close(write_end)
    assert read_some(read_end) == b"c"
    assert read_some(read_end) == b""
    os.close(read_end)
