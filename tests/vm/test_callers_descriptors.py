"""Nothing that outlives a command keeps what its caller has open: locks, pipes, folders."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.base import syscalls
from engine.patience import PATIENCE_SECONDS

from . import host
from .bundles import Bundle
from .runtime import TIMEOUT_SECONDS, Container, Runtime

FAR = 5000
"""A descriptor that no loop over the first few finds."""


class Caller:
    """Calls commands with a lock held, and a pipe open for writing, twice."""

    def __init__(self, lock: Path) -> None:
        self.lock = lock
        self._lock = os.open(lock, os.O_RDWR | os.O_CREAT)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._reader, writer = os.pipe()
        os.dup2(writer, FAR)
        self._writers = [writer, FAR]

    def __call__(self, runtime: Runtime, *args: object) -> None:
        """One command, to its end, which succeeds."""
        process = subprocess.Popen(
            [*runtime.argv, *(str(arg) for arg in args)],
            pass_fds=[self._lock, *self._writers],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=runtime.env,
            cwd=self.lock.parent,
        )
        assert process.wait(TIMEOUT_SECONDS) == 0

    def assert_alone(self) -> None:
        """AssertionError where another process has the pipe or the lock."""
        for writer in self._writers:
            os.close(writer)
        self._writers.clear()
        ready, _, _ = select.select([self._reader], [], [], PATIENCE_SECONDS)
        assert ready, f"the pipe does not end: {self.holders()}"
        assert os.read(self._reader, 1) == b""
        os.close(self._lock)
        self._lock = os.open(self.lock, os.O_RDWR)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def holders(self) -> list[str]:
        """Whose descriptors are the lock or the pipe."""
        ours = {os.readlink(f"/proc/self/fd/{fd}") for fd in (self._reader, self._lock)}
        found = []
        for path in Path("/proc").glob("[0-9]*/fd/*"):
            with contextlib.suppress(OSError):
                if os.readlink(path) in ours and path.parts[2] != str(os.getpid()):
                    found.append(f"{path} {Path(*path.parts[:3], 'cmdline').read_text()}")
        return found

    def close(self) -> None:
        """Let go of everything."""
        for fd in (self._reader, self._lock, *self._writers):
            with contextlib.suppress(OSError):
                os.close(fd)


@pytest.fixture
def caller(folder: Path) -> Iterator[Caller]:
    """A caller whose working directory is on a file system that is mounted for it."""
    (folder / "cwd").mkdir()
    syscalls.mount("tmpfs", str(folder / "cwd"), "tmpfs")
    caller = Caller(folder / "cwd" / "lock")
    yield caller
    caller.close()
    with contextlib.suppress(OSError):
        syscalls.umount(str(folder / "cwd"), syscalls.MNT_DETACH)


@pytest.mark.parametrize("cloche", ["thawed", "restored"], indirect=True)
@pytest.mark.parametrize("verb", ["create", "run"])
def test_a_container_keeps_nothing_of_its_creators(
    cloche: Runtime, bundle: Bundle, caller: Caller, verb: str
) -> None:
    name = cloche.new_id()
    flags = ["--detach"] if verb == "run" else []
    caller(cloche, verb, *flags, "--bundle", bundle.save(), name)
    caller.assert_alone()
    pid = cloche("state", name).json()["pid"]
    for process in (pid, host.qemu_of(cloche.root, name)):
        assert os.readlink(f"/proc/{process}/cwd") == "/"


def test_a_container_in_the_vm_of_another_one(
    running: Container, bundle: Bundle, caller: Caller
) -> None:
    cloche = running.runtime
    spaces = bundle.linux["namespaces"]
    for space in spaces:
        if space["type"] in ("network", "ipc"):
            space["path"] = f"/proc/{running.pid}/ns/{space['type'][:3]}"
    name = cloche.new_id()
    caller(cloche, "create", "--bundle", bundle.save(), name)
    caller.assert_alone()
    assert os.readlink(f"/proc/{cloche('state', name).json()['pid']}/cwd") == "/"


def test_a_detached_exec(running: Container, caller: Caller, folder: Path) -> None:
    pid_file = folder / "pid"
    flags = ("--detach", "--pid-file", pid_file)
    caller(running.runtime, "exec", *flags, running.id, "sleep", "1000")
    assert Path(f"/proc/{pid_file.read_text()}").exists()
    caller.assert_alone()
    assert os.readlink(f"/proc/{pid_file.read_text()}/cwd") == "/"


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer", "poststart"])
def test_what_a_hook_leaves_behind(
    cloche: Runtime, bundle: Bundle, caller: Caller, folder: Path, kind: str
) -> None:
    """It has no more than its stdio, so that a daemon which it starts holds nobody up."""
    found = folder / "found"
    script = f"ls /proc/self/fd >{found}; sleep 1000 & echo $! >{folder}/daemon"
    bundle.config["hooks"] = {kind: [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}
    name = cloche.new_id()
    caller(cloche, "run", "--detach", "--bundle", bundle.save(), name)
    try:
        # The last is that of the listing.
        assert found.read_text().split() == ["0", "1", "2", "3"]
        caller.assert_alone()
    finally:
        os.kill(int((folder / "daemon").read_text()), 9)


def test_no_file_system_of_the_callers_stays_in_use(
    cloche: Runtime, bundle: Bundle, caller: Caller, folder: Path
) -> None:
    caller(cloche, "run", "--detach", "--bundle", bundle.save(), cloche.new_id())
    caller.assert_alone()
    caller.close()
    syscalls.umount(str(folder / "cwd"))  # EBUSY while anything of it is in use


def test_a_console_socket_with_a_relative_path(
    cloche: Runtime, bundle: Bundle, folder: Path
) -> None:
    """The process that connects to it may have another working directory by then."""
    bundle.process["terminal"] = True
    name = cloche.new_id()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "console"))
        listener.listen()
        flags = ("--console-socket", "console", "--bundle", bundle.save())
        cloche("create", *flags, name, cwd=folder)
        listener.accept()[0].close()
        cloche("start", name)
        cloche("exec", "--detach", "--tty", *flags[:2], name, "true", cwd=folder)
        listener.accept()[0].close()
