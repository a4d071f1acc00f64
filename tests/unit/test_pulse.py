"""Whether a guest is silent: what counts, what does not, and what becomes of those who wait."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cloche.base.cputime import CpuTime
from cloche.heart import pulse
from cloche.heart.pulse import Pulse, SilentError
from cloche.vmm.death import death
from cloche.wire import frames

from .guest import Guest, new_guest

FAST = {"TICK_S": 0.02, "LATE_S": 30.0, "IDLE_S": 0.05, "SILENT_S": 0.5, "HOPELESS_S": 0.2}
FAST["PATIENCE_S"] = 2.0


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    """A guest that has been greeted, all times being short."""
    for name, seconds in FAST.items():
        monkeypatch.setattr(pulse, name, seconds)
    with new_guest(tmp_path) as guest:
        yield guest


def watched(guest: Guest) -> Pulse:
    """Its pulse, after the first answer."""
    beat = Pulse(guest.loop, guest.vm, guest.agent, "box")
    guest.agent.call("sync")
    answer(guest)
    assert beat.silent is None
    return beat


def answer(guest: Guest) -> list[str]:
    """Have the guest answer all that it was asked; what that was."""
    ops = []
    for _, kind, payload in guest.heard():
        assert kind == frames.REQUEST
        number, request = msgspec.msgpack.decode(payload)
        ops += request
        guest.say(frames.REPLY, [number, {"ok": None}])
    guest.turn()
    return ops


def until_silent(guest: Guest, beat: Pulse) -> SilentError:
    """What is said of it then."""
    while beat.silent is None:
        guest.loop.run_once()
    return beat.silent


def test_who_waits_is_told_and_who_asks_later_at_once(guest: Guest) -> None:
    beat = watched(guest)
    waiting = beat.ask("sync", {})
    silent = until_silent(guest, beat)
    assert waiting.error is silent
    assert "container box: its guest is silent: no answer for " in str(silent)
    assert "cloche delete --force box" in silent.hint
    known = guest.vm.backlog
    assert beat.ask("sync", {}).error is silent
    assert guest.vm.backlog == known
    with pytest.raises(SilentError):
        beat.require()


def test_a_guest_that_answers_again_is_not_silent(guest: Guest) -> None:
    beat = watched(guest)
    late: list[object] = []
    waiting = beat.ask("sync", {}, late=late.append)
    until_silent(guest, beat)
    assert answer(guest)[:2] == ["sync", "ping"]
    assert beat.silent is None
    assert late == [None]
    assert isinstance(waiting.error, SilentError)


def test_a_long_request_of_a_guest_that_answers_pings(guest: Guest) -> None:
    """A start hook may take its time."""
    beat = watched(guest)
    waiting = beat.ask("start", {"id": "box"})
    until = time.monotonic() + 3 * FAST["SILENT_S"]
    numbers = []
    while time.monotonic() < until:
        guest.loop.run_once()
        for _, _, payload in guest.heard():
            number, request = msgspec.msgpack.decode(payload)
            numbers.append(number)
            if "ping" in request:
                guest.say(frames.REPLY, [number, {"ok": None}])
    assert not waiting.done
    assert beat.silent is None
    guest.say(frames.REPLY, [numbers[0], {"ok": None}])
    guest.until(waiting)


def test_nobody_is_asked_while_nothing_is_waited_for(guest: Guest) -> None:
    watched(guest)
    for _ in range(10):
        guest.turn(FAST["TICK_S"])
    assert answer(guest) == []


def test_an_idle_guest_is_asked_now_and_then(guest: Guest) -> None:
    beat = watched(guest)
    beat.keep()
    asked: list[str] = []
    while len(asked) < 3:
        guest.loop.run_once()
        asked += answer(guest)
    assert set(asked) == {"ping"}
    assert isinstance(until_silent(guest, beat), SilentError)


def test_a_stopped_qemu_is_called_that(guest: Guest) -> None:
    beat = watched(guest)
    os.kill(guest.vm.pid, signal.SIGSTOP)
    beat.ask("sync", {})
    assert f"QEMU (process {guest.vm.pid}) is stopped" in str(until_silent(guest, beat))
    assert beat.was_stopped


def test_a_panic_on_the_console_is_looked_into_and_ends_the_vm(guest: Guest) -> None:
    watched(guest)
    guest.console.sendall(b"Kernel panic - not syncing: sysrq\r\n")
    guest.until(guest.vm.exited)
    assert "the guest's kernel panicked and did not restart" in str(death(guest.vm))
    assert "Kernel panic - not syncing: sysrq" in str(death(guest.vm))


def test_talk_of_a_panic_harms_nobody(guest: Guest) -> None:
    beat = watched(guest)
    guest.console.sendall(b"Kernel panic - not syncing: I am a container\r\n")
    asked: list[str] = []
    until = time.monotonic() + 3 * FAST["HOPELESS_S"]
    while time.monotonic() < until:
        guest.turn(FAST["TICK_S"])
        asked += answer(guest)
    assert "ping" in asked
    assert beat.silent is None
    assert not guest.vm.exited.done


def test_a_monitor_that_tells_of_a_vm_that_qemu_stopped(guest: Guest) -> None:
    beat = watched(guest)
    guest.vm._qmp_replies.clear()
    beat.ask("sync", {})
    while b"query-status" not in peeked(guest):
        guest.loop.run_once()
    guest.monitor.sendall(b'{"return": {"running": false, "status": "internal-error"}}\n')
    assert "QEMU has stopped the VM: 'internal-error'" in str(until_silent(guest, beat))


def peeked(guest: Guest) -> bytes:
    """What the monitor has been asked."""
    with contextlib.suppress(BlockingIOError):
        return guest.monitor.recv(4096, 2 | 0x40)  # MSG_PEEK, MSG_DONTWAIT
    return b""


# ---- who gets no processor time


@contextlib.contextmanager
def spinning(*, idle: bool) -> Iterator[int]:
    """A process that wants processor 0 always; *idle*: that gets it if nobody else wants it."""
    pid = os.fork()
    if pid == 0:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        if idle:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        while True:
            pass
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def looked(pid: int, rounds: int) -> tuple[float, float, float]:
    """Seconds in which *pid* was kept from going on, of how many, and those that it used."""
    cpu = CpuTime()
    cpu.look(pid, 0.0)
    kept = used = passed = 0.0
    for _ in range(rounds):
        at = time.monotonic()
        while time.monotonic() < at + 0.2:
            os.sched_yield()
        elapsed = time.monotonic() - at
        kept += cpu.look(pid, elapsed)
        used += cpu.used
        passed += elapsed
    return kept, passed, used


def test_who_waits_for_a_processor_could_not_go_on() -> None:
    with spinning(idle=False), spinning(idle=True) as starved:
        kept, passed, used = looked(starved, 10)
    assert kept > passed / 2
    assert used < passed / 2


def test_who_waits_for_nothing_could_go_on(guest: Guest) -> None:
    kept, passed, used = looked(guest.vm.pid, 5)
    assert kept < passed / 10
    assert used < passed / 10


def test_the_first_look_at_a_process_says_nothing_of_it() -> None:
    assert CpuTime().look(os.getpid(), 1.5) == 1.5


def test_a_process_that_is_gone() -> None:
    cpu = CpuTime()
    assert cpu.look(1 << 22, 1.0) == 1.0
    assert not cpu.is_stopped


def test_a_starved_guest_is_given_more_time(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not for ever."""
    beat = watched(guest)
    with spinning(idle=False), spinning(idle=True) as starved:
        monkeypatch.setattr(guest.vm, "pid", starved)
        at = time.monotonic()
        beat.ask("sync", {})
        until_silent(guest, beat)
        assert time.monotonic() - at > 1.5 * FAST["SILENT_S"]
        monkeypatch.undo()
