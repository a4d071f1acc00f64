"""What a guest says on its console, what QEMU says, and what is told of both when a VM ends."""

from __future__ import annotations

import fcntl
import os

from cloche.base.quick import suppress

# Of what QEMU says, from the beginning.
LOG_KEPT = 65536
# <linux/fcntl.h>
_F_ADD_SEALS, _SEAL_SHRINK, _SEAL_GROW = 1033, 2, 4
KEPT = 16384
# What QEMU says of every network slot that is not in use.
NOISE = "is not connected to host network"
MILESTONE = "cloche-agent: "
PANIC = "Kernel panic"


class Console:
    """The end of what one guest has said."""

    def __init__(self) -> None:
        self._said = bytearray()

    def add(self, data: bytes) -> None:
        """The guest says more."""
        self._said += data
        del self._said[:-KEPT]

    @property
    def text(self) -> str:
        """All that is kept."""
        return self._said.decode(errors="replace").replace("\r", "")

    @property
    def is_ready(self) -> bool:
        """Whether the agent was up at some time."""
        return f"{MILESTONE}ready".encode() in self._said

    @property
    def has_panicked(self) -> bool:
        """Whether there is talk of a panic. A container may have put that there."""
        return PANIC.encode() in self._said

    @property
    def has_milestone(self) -> bool:
        """Whether the agent has begun."""
        return self.last_milestone != "none"

    @property
    def last_milestone(self) -> str:
        """How far the boot came."""
        milestones = [line for line in self.text.splitlines() if line.startswith(MILESTONE)]
        return milestones[-1].removeprefix(MILESTONE) if milestones else "none"

    def last_words(self, log: str) -> str:
        """The ends of it and of *log*, which QEMU said, on one line."""
        parts = []
        for title, text in (("console", self.text), ("QEMU", log)):
            lines = [line for line in text.strip().splitlines() if NOISE not in line]
            # What follows a panic are registers.
            panics = [line for line in lines if PANIC in line]
            tail = " | ".join(panics[-1:] or lines[-5:])
            parts.append(f"{title}: {tail[-800:] or '(silent)'}")
        return "; ".join(parts)


class QemuLog:
    """What QEMU writes to its stdout and stderr, in memory that cannot grow.

    A guest that has taken QEMU over could fill the host's disk else. While QEMU runs the file at
    *path* leads there; `keep` leaves one with what there was.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.fd = os.memfd_create("qemu.log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, LOG_KEPT)
        fcntl.fcntl(self.fd, _F_ADD_SEALS, _SEAL_SHRINK | _SEAL_GROW)
        with suppress(FileExistsError):
            os.symlink(f"/proc/{os.getpid()}/fd/{self.fd}", path)

    @property
    def text(self) -> str:
        """All that is kept."""
        said = os.pread(self.fd, LOG_KEPT, 0).rstrip(b"\0")
        return said.decode(errors="replace")

    def keep(self) -> None:
        """QEMU has ended by itself: what it said is to be found after us as well."""
        with suppress(OSError):
            os.unlink(self._path)
            with open(self._path, "w", encoding="utf-8") as file:
                file.write(self.text)
