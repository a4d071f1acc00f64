"""Telling a supervisor that does not answer from one that is kept from a processor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.base.cputime import has_run, is_kept_waiting
from cloche.heart import client

HALF = client.DEAF_S * 500_000_000


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    """A process that always wants a processor."""
    program = "print(flush=True)\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_one_that_ran_little_is_kept_waiting(busy: subprocess.Popen[bytes]) -> None:
    before = has_run(busy.pid)
    assert before is not None
    assert is_kept_waiting(busy.pid, before, client.DEAF_S)


def test_one_that_ran_and_ran_is_not(busy: subprocess.Popen[bytes]) -> None:
    before = has_run(busy.pid)
    assert before is not None
    assert not is_kept_waiting(busy.pid, before - HALF, client.DEAF_S)


def test_a_stopped_one_is_not(busy: subprocess.Popen[bytes]) -> None:
    busy.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, busy.pid, os.WSTOPPED | os.WNOWAIT)
    before = has_run(busy.pid)
    assert before is not None
    assert not is_kept_waiting(busy.pid, before, client.DEAF_S)


def test_a_sleeping_one_is_not() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        stat = Path(f"/proc/{process.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "S":
            pass
        before = has_run(process.pid)
        assert before is not None
        assert not is_kept_waiting(process.pid, before, client.DEAF_S)
        process.kill()


def test_one_that_is_gone_tells_nothing() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert has_run(process.pid) is None
    assert is_kept_waiting(process.pid, 0, client.DEAF_S)
