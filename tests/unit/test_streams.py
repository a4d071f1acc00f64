"""Relays between descriptors and the agent's streams, with real pipes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.base.errors import GuestError
from cloche.base.loop import Loop
from cloche.heart.streams import InputRelay, OutputRelay
from cloche.wire.frames import CREDIT_STEP, OUTPUT_WINDOW, WINDOW


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def output(loop: Loop, fd: int) -> tuple[OutputRelay, list[int]]:
    granted: list[int] = []
    return OutputRelay(loop, fd, grant=granted.append), granted


def test_output_is_written_and_credit_returned(loop: Loop) -> None:
    read_end, write_end = os.pipe()
    relay, granted = output(loop, write_end)
    relay.feed(b"hello")
    assert os.read(read_end, 100) == b"hello"
    assert granted == []  # a frame for five bytes would cost more than they do
    for _ in range(CREDIT_STEP // 4096):
        relay.feed(bytes(4096))
        os.read(read_end, 4096)
    assert granted == [CREDIT_STEP + 5]
    relay.end()
    assert relay.finished.done
    assert os.read(read_end, 100) == b""
    os.close(read_end)


def test_the_guest_is_told_once_that_nobody_reads_any_more(loop: Loop) -> None:
    read_end, write_end = os.pipe()
    told: list[str] = []
    granted: list[int] = []
    relay = OutputRelay(
        loop, write_end, grant=granted.append, refuse=lambda: told.append("refused")
    )
    os.close(read_end)
    relay.feed(b"hello")
    assert told == ["refused"]
    assert relay.reader_gone
    assert relay.finished.done
    relay.feed(b"still under way")
    assert told == ["refused"]
    assert sum(granted) == len(b"hello" + b"still under way")


def test_slow_reader_holds_credit_back_and_loses_nothing(loop: Loop) -> None:
    read_end, write_end = os.pipe()
    relay, granted = output(loop, write_end)
    data = bytes(range(256)) * 2048
    relay.feed(data)
    drained = relay.drained()
    assert not drained.done
    assert sum(granted) < len(data)
    received = b""
    while not drained.done:
        received += os.read(read_end, 65536)
        loop.run_once()
    relay.end()
    while piece := os.read(read_end, 65536):
        received += piece
    assert received == data
    assert len(data) - CREDIT_STEP < sum(granted) <= len(data)
    os.close(read_end)


def test_a_line_of_ours_gives_the_guest_no_credit(loop: Loop) -> None:
    """Else a guest that uses all of its credit would be taken for one that overruns it."""
    read_end, write_end = os.pipe()
    relay, granted = output(loop, write_end)
    relay.feed(bytes(OUTPUT_WINDOW))  # more than the pipe holds
    relay.add("a line\n")
    drained = relay.drained()
    received = b""
    while not drained.done:
        received += os.read(read_end, 65536)
        loop.run_once()
    while len(received) < OUTPUT_WINDOW + 7:
        received += os.read(read_end, 65536)
    assert received.endswith(b"a line\n")
    assert OUTPUT_WINDOW - CREDIT_STEP < sum(granted) <= OUTPUT_WINDOW
    os.close(read_end)


def test_a_line_of_ours_behind_the_end_is_dropped(loop: Loop) -> None:
    read_end, write_end = os.pipe()
    relay, granted = output(loop, write_end)
    relay.end()
    relay.add("a line\n")
    assert (os.read(read_end, 10), granted) == (b"", [])
    os.close(read_end)


def test_guest_that_overruns_its_credit_is_refused(loop: Loop) -> None:
    read_end, write_end = os.pipe()
    relay, _ = output(loop, write_end)
    relay.feed(b"x" * OUTPUT_WINDOW)
    with pytest.raises(GuestError, match="overruns its credit"):
        relay.feed(b"x" * OUTPUT_WINDOW)
    os.close(read_end)


def test_reader_that_leaves_stops_nothing(loop: Loop) -> None:
    read_end, write_end = os.pipe()
    relay, granted = output(loop, write_end)
    os.close(read_end)
    for _ in range(3):
        relay.feed(b"x" * OUTPUT_WINDOW)
    assert sum(granted) == 3 * OUTPUT_WINDOW


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_input_stops_at_its_credit(loop: Loop, tmp_path: Path, kind: str) -> None:
    data = os.urandom(WINDOW + 1000)
    path = tmp_path / "input"
    path.write_bytes(data)
    if kind == "file":
        fd = os.open(path, os.O_RDONLY)
    else:
        fd, write_end = os.pipe()
        writer = os.fork()
        if writer == 0:
            os.close(fd)
            with open(write_end, "wb") as pipe:
                pipe.write(data)
            os._exit(0)
        os.close(write_end)
    sent: list[bytes] = []
    ended: list[bool] = []
    relay = InputRelay(loop, fd, send=sent.append, send_eof=lambda: ended.append(True))
    relay.start()
    while sum(map(len, sent)) < WINDOW:
        loop.run_once()
    assert not ended
    relay.grant(WINDOW)
    while not ended:
        loop.run_once()
    assert b"".join(sent) == data
    assert relay.finished.done
