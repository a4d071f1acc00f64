"""cloche-files by itself, asked as the guest's relay asks it."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cloche.base import syscalls
from cloche.host.file_server import find_file_server
from cloche.vmm.files_slot import FilesSlot
from engine.patience import PATIENCE_SECONDS

LOOKUP = 1
_HEADER = struct.Struct("<IIQQIIII")
_REPLY = struct.Struct("<IiQ")


ROOT = "0 0 1"
# As sys.rs has them.
OWN_USERS = f"{0x70000000} {0x70000000} {1 << 22}"


def _become(argv: list[str], instances: int) -> None:
    """In a child with a user namespace of its own, once it goes on: execute *argv*.

    Root may have so many *instances* of inotify(7) there, and another process has one of them.
    """
    syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
    os.kill(os.getpid(), signal.SIGSTOP)
    Path("/proc/sys/user/max_inotify_instances").write_text(str(instances))
    if instances:
        assert ctypes.CDLL(None).inotify_init1(os.O_CLOEXEC) >= 0
        if os.fork() == 0:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.pause()
    os.execv(argv[0], argv)


@contextmanager
def served(folder: Path, instances: int, users: str = ROOT) -> Iterator[socket.socket]:
    """The relay's end of the socket of a server, where root has one of *instances* already."""
    with ExitStack() as stack:
        slot = FilesSlot()
        stack.callback(slot.close)
        numbers = [slot.server_end.fileno(), slot.bulk]
        child = os.fork()
        if child == 0:
            try:
                for number in numbers:
                    os.set_inheritable(number, True)
                server = find_file_server()
                _become([server, *map(str, numbers), str(folder)], instances)
            finally:
                os._exit(1)
        stack.callback(os.waitpid, child, 0)
        stack.callback(os.kill, child, signal.SIGKILL)
        os.waitpid(child, os.WUNTRACED)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text(users)
        os.kill(child, signal.SIGCONT)
        slot.server_end.close()
        ours = stack.enter_context(socket.socket(fileno=os.dup(slot.vm_end.fileno())))
        ours.settimeout(PATIENCE_SECONDS)
        yield ours


def look_up(server: socket.socket, name: str) -> tuple[int, int, int]:
    """The node of an entry of the root, and for how long the guest may believe name and file."""
    body = name.encode() + b"\0"
    server.sendall(_HEADER.pack(_HEADER.size + len(body), LOOKUP, 7, 1, 0, 0, 0, 0) + body)
    _, error, unique = _REPLY.unpack(server.recv(_REPLY.size, socket.MSG_WAITALL))
    assert (error, unique) == (0, 7)
    node, _, entry_s, file_s = struct.unpack("<QQQQ", server.recv(32, socket.MSG_WAITALL))
    return node, entry_s, file_s


@pytest.mark.parametrize(("instances", "believed"), [(2, True), (1, False), (0, False)])
def test_without_inotify_nothing_is_believed(
    tmp_path: Path, instances: int, believed: bool
) -> None:
    """Where there is root only, and it has as many instances as it may have."""
    (tmp_path / "file").touch()
    with served(tmp_path, instances) as server:
        node, entry_s, file_s = look_up(server, "file")
        assert node > 1
        assert (entry_s > 0, file_s > 0) == (believed, believed)


def test_its_inotify_is_not_roots(tmp_path: Path) -> None:
    """A host gives each user 128: there are to be more VMs than that."""
    (tmp_path / "file").touch()
    with served(tmp_path, 1, f"{ROOT}\n{OWN_USERS}") as server:
        _, entry_s, file_s = look_up(server, "file")
        assert entry_s > 0
        assert file_s > 0
