"""What a guest says on its console, and what is told of it when its VM ends."""

from __future__ import annotations

from cloche.base.files import read_text

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
        """The ends of it and of what QEMU said, which is in the file *log*, on one line."""
        parts = []
        for title, text in (("console", self.text), ("QEMU", read_text(log) or "")):
            lines = [line for line in text.strip().splitlines() if NOISE not in line]
            # What follows a panic are registers.
            panics = [line for line in lines if PANIC in line]
            tail = " | ".join(panics[-1:] or lines[-5:])
            parts.append(f"{title}: {tail[-800:] or '(silent)'}")
        return "; ".join(parts)
