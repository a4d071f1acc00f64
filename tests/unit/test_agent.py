"""The supervisor's end of the agent connection, against guests that mean harm."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloche.base.errors import GuestError
from cloche.base.loop import Future
from cloche.heart.agent import BACKLOG_LIMIT, MOST_PENDING, REQUEST_LIMIT
from cloche.heart.streams import READ_SIZE
from cloche.vmm.death import death
from cloche.wire import frames
from cloche.wire.frames import WINDOW

from .guest import Guest, new_guest

HARMFUL = [float("inf"), float("-inf"), float("nan"), -1, 1 << 63, (1 << 64) - 1, 1e300, 1.5]
ODD: list[Any] = [*HARMFUL, None, "x", True, b"x", [], {}, [{}]]
PROCESS = {"pid": 1, "ppid": 0, "uid": 0, "gid": 0, "nspid": 1, "start_ns": 1, "cpu_ns": 1}
VALUES: dict[str, Any] = {
    "hello": {"version": 1, "nonce": bytes(16), "agent": "0", "kernel": "6", "boot_ns": 1},
    "create": {"pid": 1},
    "exec": {"pid": 1},
    "processes": [{**PROCESS, "command": "x", "stat": ("S", 1, 1, 0, -1, 0, 1, 1, 1)}],
    "cgroup_read": {"pids.max": "max\n"},
}
EVENTS: dict[str, dict[str, Any]] = {
    "exit": {"id": "box", "exec_id": None, "status": 0},
    "oom": {"id": "box", "count": 1},
    "dns_query": {"query": 1, "server": "127.0.0.11", "tcp": False, "data": b"x"},
    "module": {"query": 1, "name": "fuse", "loaded": []},
    "log": {"level": "warning", "message": "x"},
}


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    with new_guest(tmp_path) as guest:
        yield guest


def reply(guest: Guest, op: str, value: object) -> Future:
    """Ask for *op*; the guest's answer is *value*."""
    asked = guest.agent.call(op)
    guest.say(frames.REPLY, [guest.agent._protocol._last, {"ok": value}])
    guest.turn(10)
    return asked


def refused(guest: Guest, told: str) -> None:
    """What was said is the guest's error, which names *told*; its end is explained by that."""
    guest.until(guest.vm.exited)
    assert isinstance(guest.agent.broken, GuestError)
    assert told in str(guest.agent.broken)
    assert "internal error" not in str(guest.agent.broken)
    assert death(guest.vm) is guest.agent.broken


@pytest.mark.parametrize("op", VALUES)
def test_a_value_as_it_should_be(guest: Guest, op: str) -> None:
    assert reply(guest, op, VALUES[op]).result() == VALUES[op]
    assert guest.agent.broken is None


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize("op", ["hello", "create", "exec", "processes"])
def test_a_number_in_a_reply_that_cannot_be(tmp_path: Path, op: str, value: object) -> None:
    fields = VALUES[op][0] if op == "processes" else VALUES[op]
    for name in (name for name, usual in fields.items() if isinstance(usual, int)):
        if value == 1.5 and name == "version":
            continue
        with new_guest(tmp_path) as guest:
            changed = {**fields, name: value}
            asked = reply(guest, op, [changed] if op == "processes" else changed)
            assert isinstance(asked.error, GuestError)
            refused(guest, f"reply to {op}: ")


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize("name", EVENTS)
def test_a_field_of_an_event_that_cannot_be(tmp_path: Path, name: str, value: object) -> None:
    for field, usual in EVENTS[name].items():
        if type(value) is type(usual) and value not in HARMFUL:
            continue
        if field == "exec_id" and value == "x":
            continue
        with new_guest(tmp_path) as guest:
            guest.say(frames.EVENT, {name: {**EVENTS[name], field: value}})
            refused(guest, f"event {name}: ")
            assert guest.events == []


@pytest.mark.parametrize("number", [*HARMFUL, 0, 2, None, "1"], ids=repr)
def test_a_reply_to_what_was_not_asked(guest: Guest, number: object) -> None:
    guest.agent.call("sync")
    guest.say(frames.REPLY, [number, {"ok": None}])
    refused(guest, "agent connection: ")


@pytest.mark.parametrize("errno", [*HARMFUL, 4096, None, "x"], ids=repr)
def test_an_error_of_no_number(guest: Guest, errno: object) -> None:
    guest.agent.call("sync")
    error = {"step": "sync", "object": "", "errno": errno, "message": ""}
    guest.say(frames.REPLY, [1, {"err": error}])
    refused(guest, "$[1].err.errno")


@pytest.mark.parametrize("body", [{}, {"ok": None, "err": None}, {"ok": 5}, {"ok": {"pid": 1}}])
def test_a_reply_with_nothing_or_too_much(guest: Guest, body: object) -> None:
    guest.agent.call("sync")
    guest.say(frames.REPLY, [1, body])
    refused(guest, "malformed message")


def test_an_event_that_is_unknown(guest: Guest) -> None:
    guest.say(frames.EVENT, {"party": {}})
    refused(guest, "event 'party': unknown")


@pytest.mark.parametrize(
    "line",
    [b"no JSON", b"5", b"[1]", b'{"error": 5}', b'{"error": null}', b"[" * 100_000, b"\xff"],
    ids=lambda line: repr(line[:20]),
)
def test_a_monitor_that_says_what_is_no_message(guest: Guest, line: bytes) -> None:
    guest.monitor.sendall(line + b"\n")
    guest.until(guest.vm.exited)
    assert "QEMU: its monitor sent what is no message: " in str(death(guest.vm))


def test_a_monitor_whose_line_has_no_end(guest: Guest) -> None:
    while guest.vm.killed_for is None:
        guest.monitor.send(b" " * 65536)
        guest.turn()
    assert "QEMU: its monitor sent a line of more than" in str(guest.vm.killed_for)


# ---- what is queued for a guest that does not read


def test_input_waits_for_a_guest_that_grants_credit_and_does_not_read(
    guest: Guest, tmp_path: Path
) -> None:
    """And nothing of it is lost when that reads again."""
    size = 32 << 20
    source = tmp_path / "input"
    source.write_bytes(os.urandom(1 << 20) * (size >> 20))
    relay = guest.agent.input(os.open(source, os.O_RDONLY))
    relay.start()
    for _ in range(3 * size // WINDOW):
        guest.say(frames.CREDIT, WINDOW.to_bytes(4, "little"), relay.stream)
        for _ in range(5):
            guest.turn()
        assert guest.vm.backlog <= BACKLOG_LIMIT + READ_SIZE + 100
    assert guest.vm.backlog >= BACKLOG_LIMIT
    got = []
    while not relay.finished.done:
        got += [payload for _, _, payload in guest.heard()]
        guest.say(frames.CREDIT, WINDOW.to_bytes(4, "little"), relay.stream)
    got += [payload for _, _, payload in guest.heard()]
    assert b"".join(got) == source.read_bytes()


def test_a_pipe_is_read_again_once_there_is_room(guest: Guest) -> None:
    read_end, write_end = os.pipe()
    relay = guest.agent.input(read_end)
    guest.vm.send(bytes(2 * BACKLOG_LIMIT))
    relay.start()
    os.write(write_end, b"hello")
    for _ in range(10):
        guest.turn()
    os.close(write_end)
    assert guest.read_all().endswith(
        frames.encode(relay.stream, frames.DATA, b"hello") + frames.encode(relay.stream, frames.EOF)
    )


def test_credit_is_owed_to_a_guest_that_does_not_read(guest: Guest) -> None:
    relay = guest.agent.output(os.open(os.devnull, os.O_WRONLY))
    for _ in range(BACKLOG_LIMIT // frames.MAX_PAYLOAD * 2):
        guest.vm.send(frames.encode(99, frames.DATA, bytes(frames.MAX_PAYLOAD)))
    queued = guest.vm.backlog
    for _ in range(WINDOW // 1024):
        guest.port.sendall(frames.encode(relay.stream, frames.DATA, bytes(1024)))
        guest.turn()
    assert guest.vm.backlog == queued
    heard = [payload for stream, _, payload in guest.heard() if stream == relay.stream]
    assert sum(int.from_bytes(credit, "little") for credit in heard) == WINDOW


def test_requests_are_refused_by_a_queue_that_is_full(guest: Guest) -> None:
    guest.vm.send(bytes(REQUEST_LIMIT + (1 << 20)))
    refused = guest.agent.call("sync")
    assert "sync: the guest has not taken " in str(refused.error)
    guest.read_all()
    assert guest.agent.call("sync").error is None


def test_requests_that_are_never_answered_do_not_pile_up(guest: Guest) -> None:
    asked = [guest.agent.call("dns_reply", {"query": 1, "data": b""}) for _ in range(5000)]
    assert sum(each.error is None for each in asked) == MOST_PENDING
    assert f"the guest has not answered {MOST_PENDING} requests before" in str(asked[-1].error)
