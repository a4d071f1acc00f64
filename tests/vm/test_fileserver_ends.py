"""cloche-files is killed, hangs or has never served: who waits for it is told, and nobody waits."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.host.file_server import find_file_server
from engine.dockerd import wait_until
from engine.patience import PATIENCE_SECONDS

from .bundles import Bundle
from .file_comparison import FUSE
from .runtime import Container, Runtime
from .test_fileserver import served, server_of

__all__ = ["served"]
BEGINNINGS = {
    "missing": ("", "is nowhere, but `files = fuse` asks for it"),
    "no program": ("gibberish", "cannot start "),
    "exits at once": ("#!/bin/sh\necho cannot >&2\nexit 3\n", "with exit status 3 before it"),
    "is killed": ("#!/bin/sh\nkill -KILL $$\n", "with signal 9 before it served any file"),
    "ends well": ("#!/bin/sh\n", "with exit status 0 before it served any file"),
    "hangs": ("#!/bin/sh\nkill -STOP $$\n", "is stopped; kill -CONT lets it go on"),
}


@pytest.fixture
def running(served: Runtime, bundle: Bundle, data: Path) -> Container:
    """A container that has the folder *data* as /data."""
    os.mkfifo(data / "fifo")
    return served.start(bundle.mount("/data", "bind", data, "rbind"))


def reads_on_and_on(container: Container) -> Path:
    """A program that asks for a file again and again; where it says what has become of that."""
    out = container.runtime.directory / "out"
    script = "i=0; while cat /data/$i 2>&1 | grep 'No such'; do i=$((i+1)); done; cat /data/none"
    with open(out, "wb") as file:
        container.runtime.popen("exec", container.id, "sh", "-c", script, stdout=file, stderr=file)
    wait_until(lambda: b"/data/3" in out.read_bytes(), "it reads")
    return out


def test_one_that_is_killed(running: Container) -> None:
    cloche = running.runtime
    out = reads_on_and_on(running)
    pid = server_of(running)
    os.kill(pid, signal.SIGKILL)
    why = f"files: cloche-files (process {pid}) ended with signal 9, and nothing else serves"
    wait_until(lambda: why in running.err.read_text(), "the container's log says so")
    wait_until(lambda: b"not connected" in out.read_bytes(), "the reader has got an error")
    assert why in cloche.fails("exec", running.id, "cat", "/data/file", code=255)
    assert running.status == "running"
    assert "sleep 1000" in cloche("ps", running.id).output
    running.kill("KILL")
    assert running.wait() == 137
    cloche("delete", running.id)
    assert cloche.leftovers() == []


def test_one_that_is_killed_under_what_waits_for_it(running: Container) -> None:
    """The request is on its way: the reader must not wait for ever."""
    pid = server_of(running)
    os.kill(pid, signal.SIGSTOP)
    client = running.runtime.popen("exec", running.id, "cat", "/data/file")
    os.kill(pid, signal.SIGKILL)
    assert client.wait(PATIENCE_SECONDS) != 0
    why = f"cloche-files (process {pid}) ended with signal 9"
    wait_until(lambda: why in running.err.read_text(), "the container's log says so")
    running.runtime("delete", "--force", running.id)
    assert running.runtime.leftovers() == []


@contextlib.contextmanager
def stopped_server(container: Container) -> Iterator[int]:
    """Its server, stopped by a signal, and let go on afterwards."""
    pid = server_of(container)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_one_that_hangs(running: Container) -> None:
    cloche = running.runtime
    with stopped_server(running) as pid:
        for _ in range(2):
            message = cloche.fails("exec", running.id, "cat", "/data/file", code=255)
            where = f"exec: container {running.id}: its files are not served: nothing done for "
            assert where in message
            assert f"cloche-files (process {pid}) is stopped; kill -CONT lets it go on" in message
        assert len(cloche("ps", running.id).lines) >= 2
        assert cloche("events", "--stats", running.id).json()["type"] == "stats"
    wait_until(
        lambda: cloche("exec", running.id, "cat", "/data/file", code=None).code == 0, "it is back"
    )


@pytest.mark.parametrize("how", ["kill", "delete"])
def test_one_that_hangs_keeps_nobody_from_ending(running: Container, how: str) -> None:
    """Even where the container itself waits for a file, and hears of no signal."""
    cloche = running.runtime
    with stopped_server(running):
        client = cloche.popen("exec", running.id, "ls", "/data/sub")
        if how == "kill":
            running.kill("KILL")
            assert running.wait() == 137
        else:
            cloche("delete", "--force", running.id)
        assert client.wait(PATIENCE_SECONDS) != 0  # the client is one of the processes
        if how == "delete":
            assert cloche.leftovers() == []


@pytest.mark.parametrize("name", BEGINNINGS)
def test_one_that_never_began(program: Path, folder: Path, bundle: Bundle, name: str) -> None:
    """The creation fails, with the reason, and leaves nothing."""
    text, reason = BEGINNINGS[name]
    server = folder / "server"
    server.write_text(text)
    server.chmod(0o755 if text else 0o644)
    wrapper = folder / "wrapper"
    inside = f'mount --bind {server} {find_file_server()} && exec {program} "$@"'
    wrapper.write_text(f"#!/bin/sh\nexec unshare -m sh -c '{inside}' sh \"$@\"\n")
    wrapper.chmod(0o755)
    runtime = Runtime(wrapper, folder / "cloche", FUSE)
    message = runtime.fails("run", "--bundle", bundle.save(), runtime.new_id())
    assert "files" in message
    assert "cloche-files" in message
    assert reason in message
    assert runtime.leftovers() == []
    runtime.clean_up()
