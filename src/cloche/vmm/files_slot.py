"""What QEMU is given so that another program can serve the guest's files (docs/files.md).

A stream of requests and replies, and a bulk file: memory through which what is long goes. Its
first half is what the guest writes, the second one what it reads.
"""

from __future__ import annotations

import _socket  # socket proper imports selectors and enum, 5 ms
import fcntl
import os

NAME = "cloche-bulk"
# Two rings of 2 MiB, as fileserver/src/ring.rs and agent/src/relay.rs have them.
BULK_SIZE = 4 << 20
_F_ADD_SEALS = 1033
_SEALED_SIZE = 1 | 2 | 4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW


class FilesSlot:
    """QEMU's end of the stream and the server's, and the bulk file; for one VM."""

    def __init__(self) -> None:
        self.vm_end, self.server_end = _socket.socketpair()
        self.bulk = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.bulk, BULK_SIZE)
        fcntl.fcntl(self.bulk, _F_ADD_SEALS, _SEALED_SIZE)

    @property
    def fds(self) -> list[int]:
        """What a VM is started with, in this order."""
        return [self.vm_end.fileno(), self.bulk]

    def close(self) -> None:
        """Let go of all that this process has of it."""
        self.vm_end.close()
        self.server_end.close()
        if self.bulk >= 0:
            os.close(self.bulk)
        self.bulk = -1
