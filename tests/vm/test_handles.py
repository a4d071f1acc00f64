"""Pid files and pidfds: what callers hold the processes by that stand for those of a container."""

from __future__ import annotations

import array
import os
import select
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.patience import PATIENCE_SECONDS

from .bundles import Bundle
from .runtime import Container, Runtime

NULL = subprocess.DEVNULL
MARK = "86399"
"""Seconds that a process sleeps which no other test starts."""


def quietly(runtime: Runtime, *words: object) -> tuple[int, str]:
    """Run a command whose process goes on to live; its exit code and what it says."""
    log = runtime.directory / "said"
    with open(log, "wb") as file:
        code = runtime.popen(*words, stdin=NULL, stdout=NULL, stderr=file).wait(PATIENCE_SECONDS)
    return code, log.read_text()


@pytest.mark.parametrize("name", ["cloche", "runc"])
def test_exec_in_the_foreground_writes_its_pid(
    request: pytest.FixtureRequest, bundle: Bundle, folder: Path, name: str
) -> None:
    runtime: Runtime = request.getfixturevalue(name)
    container = runtime.start(bundle)
    file = folder / "exec.pid"
    script = "echo up; read line; exit 7"
    words = ("exec", "--pid-file", file, container.id, "sh", "-c", script)
    process = runtime.popen(*words, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    # It is written once the process runs, so perhaps not yet.
    while not file.exists():
        assert process.poll() is None
    os.kill(int(file.read_text()), 0)
    process.communicate(b"\n", timeout=PATIENCE_SECONDS)
    assert process.returncode == 7
    assert file.exists()


@pytest.mark.parametrize("name", ["cloche", "runc"])
@pytest.mark.parametrize("flags", [(), ("--detach",)], ids=["foreground", "detached"])
def test_exec_whose_pid_cannot_be_told_leaves_no_process(
    request: pytest.FixtureRequest, bundle: Bundle, name: str, flags: tuple[str, ...]
) -> None:
    runtime: Runtime = request.getfixturevalue(name)
    container = runtime.start(bundle)
    words = ("exec", *flags, "--pid-file", "/no/such/pid", container.id, "sleep", MARK)
    code, said = quietly(runtime, *words)
    assert code == 255
    assert "no such file or directory" in said
    assert len(said.splitlines()) == 1
    assert MARK not in container.sh("ps").output


@pytest.mark.parametrize("name", ["cloche", "runc"])
@pytest.mark.parametrize("verb", [("create",), ("run",), ("run", "--detach")], ids=" ".join)
def test_a_container_whose_pid_cannot_be_told_is_removed(
    request: pytest.FixtureRequest, bundle: Bundle, name: str, verb: tuple[str, ...]
) -> None:
    runtime: Runtime = request.getfixturevalue(name)
    words = (*verb, "--pid-file", "/no/such/pid", "--bundle", bundle.save(), runtime.new_id())
    code, said = quietly(runtime, *words)
    assert code == 1
    assert "no such file or directory" in said
    assert len(said.splitlines()) == 1
    assert runtime.leftovers() == []


@pytest.mark.parametrize("verb", [("create",), ("run", "--detach")], ids=" ".join)
def test_a_container_whose_timings_cannot_be_told_is_removed(
    cloche: Runtime, bundle: Bundle, verb: tuple[str, ...]
) -> None:
    words = ("--timings", "/no/such/file", *verb, "--bundle", bundle.save(), cloche.new_id())
    code, said = quietly(cloche, *words)
    name = f"cloche: {verb[0]} failed: --timings /no/such/file"
    assert (code, said) == (1, f"{name}: no such file or directory\n")
    assert cloche.leftovers() == []


@pytest.fixture
def listener(folder: Path) -> Iterator[socket.socket]:
    """Where pidfds are sent to."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "pidfd.sock"))
        listener.listen()
        listener.settimeout(PATIENCE_SECONDS)
        yield listener


def receive(listener: socket.socket) -> tuple[bytes, int]:
    """What kind of process was told of, and its pidfd."""
    connection, _ = listener.accept()
    with connection:
        kind, ancillary, _, _ = connection.recvmsg(100, socket.CMSG_SPACE(4))
    ((_, _, data),) = ancillary
    return kind, array.array("i", data)[0]


def pid_of(pidfd: int) -> int:
    """The process that *pidfd* stands for."""
    lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))


@pytest.mark.parametrize("verb", ["create", "start"])
def test_a_pidfd_of_a_container(
    cloche: Runtime, bundle: Bundle, listener: socket.socket, verb: str
) -> None:
    path = listener.getsockname()
    container: Container = getattr(cloche, verb)(bundle, "--pidfd-socket", path)
    kind, pidfd = receive(listener)
    assert (kind, pid_of(pidfd)) == (b"standard", container.pid)
    container.end()
    assert select.select([pidfd], [], [], PATIENCE_SECONDS)[0]
    os.close(pidfd)


def test_a_pidfd_of_an_exec(running: Container, folder: Path, listener: socket.socket) -> None:
    file = folder / "exec.pid"
    flags = ("--detach", "--pid-file", file, "--pidfd-socket", listener.getsockname())
    assert quietly(running.runtime, "exec", *flags, running.id, "sleep", MARK) == (0, "")
    kind, pidfd = receive(listener)
    assert (kind, pid_of(pidfd)) == (b"setns", int(file.read_text()))
    os.kill(pid_of(pidfd), 15)  # handed on
    assert select.select([pidfd], [], [], PATIENCE_SECONDS)[0]
    assert MARK not in running.sh("ps").output
    os.waitpid(int(file.read_text()), 0)
    os.close(pidfd)


def test_a_pidfd_that_nobody_receives(cloche: Runtime, bundle: Bundle, folder: Path) -> None:
    nobody = folder / "nobody.sock"
    words = ("--pidfd-socket", nobody)
    message = cloche.fails("run", *words, "--bundle", bundle.save(), cloche.new_id())
    assert message == f"cloche: --pidfd-socket {nobody}: no such file or directory"
    assert cloche.leftovers() == []
    container = cloche.start(bundle)
    message = cloche.fails("exec", *words, container.id, "true", code=255)
    assert message == f"cloche: exec failed: --pidfd-socket {nobody}: no such file or directory"
