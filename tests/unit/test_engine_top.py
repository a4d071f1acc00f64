"""Stand-ins on the host for a guest's processes: what the host's ps says of them, and their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.engine import top
from cloche.engine.top import stand_in
from engine.dockerd import wait_until

START = f"import sys; sys.path[:] = {sys.path!r}; from cloche.engine import top; "
START += "from cloche.engine.top import stand_in; "


@pytest.fixture
def pids(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Three stand-ins that last until the end of the test."""
    monkeypatch.setattr(top, "LIFETIME_SECONDS", 255)
    uid = os.getuid()
    started = stand_in([(uid, "sleep 1234"), (uid, "httpd -f  -p 80"), (uid, "ü\0x")])
    yield started
    for pid in started:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _ps(columns: str, pids: list[int]) -> list[str]:
    argv = ["ps", "-o", columns, "--no-headers", "-q", ",".join(map(str, pids))]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.strip() for line in shown]


def test_ps_shows_the_guests_commands(pids: list[int]) -> None:
    assert _ps("args", pids)[:2] == ["sleep 1234", "httpd -f  -p 80"]
    # It names itself first thing, but after its execve.
    wait_until(lambda: _ps("comm", pids)[:2] == ["sleep", "httpd"], "they have named themselves")


def test_they_end_by_themselves(pids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "LIFETIME_SECONDS", 1)
    (pid,) = stand_in([(os.getuid(), "short")])
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGALRM


def test_caller_is_not_held_up() -> None:
    """Who waits for the end of our output does not wait for the stand-ins."""
    script = START + f"top.LIFETIME_SECONDS = 255; print(*stand_in([({os.getuid()}, 'sleep 1')]))"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    os.kill(int(output), signal.SIGKILL)  # it is still there


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes of other users")
def test_user_is_the_guests() -> None:
    (pid,) = stand_in([(4321, "sleep 1")])
    assert _ps("uid,gid", [pid])[0].split() == ["4321", "4321"]
    os.waitpid(pid, 0)


def test_a_guest_cannot_ask_for_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "MOST", 3)
    pids = stand_in((os.getuid(), "x" * 10_000_000) for _ in range(10))
    assert len(pids) == 3
    assert {len(Path(f"/proc/{pid}/cmdline").read_bytes()) for pid in pids} == {top.LONGEST + 1}
    for pid in pids:
        os.waitpid(pid, 0)
