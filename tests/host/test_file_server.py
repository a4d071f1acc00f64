"""cloche-files by itself, asked as the guest's relay asks it."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cloche.host.file_server import find_file_server
from cloche.vmm.files_slot import FilesSlot
from engine.patience import PATIENCE_SECONDS

LOOKUP = 1
_HEADER = struct.Struct("<IIQQIIII")
_REPLY = struct.Struct("<IiQ")


@contextmanager
def served(folder: Path, inotify_instances: int) -> Iterator[socket.socket]:
    """The relay's end of the socket of a server that may have so many instances of inotify(7)."""
    with ExitStack() as stack:
        slot = FilesSlot()
        stack.callback(slot.close)
        numbers = [slot.server_end.fileno(), slot.bulk]
        allow = f"echo {inotify_instances} >/proc/sys/user/max_inotify_instances"
        server = f'exec {find_file_server()} {numbers[0]} {numbers[1]} "{folder}"'
        own = ["unshare", "--user", "--map-root-user", "--mount"]
        process = subprocess.Popen([*own, "sh", "-c", f"{allow} && {server}"], pass_fds=numbers)
        stack.callback(process.wait, PATIENCE_SECONDS)
        stack.callback(process.kill)
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


@pytest.mark.parametrize(("instances", "believed"), [(8, True), (0, False)])
def test_without_inotify_nothing_is_believed(
    tmp_path: Path, instances: int, believed: bool
) -> None:
    """A host gives each user 128 instances: with more VMs than that files are served uncached."""
    (tmp_path / "file").touch()
    with served(tmp_path, instances) as server:
        node, entry_s, file_s = look_up(server, "file")
        assert node > 1
        assert (entry_s > 0, file_s > 0) == (believed, believed)
