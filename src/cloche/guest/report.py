"""How the long steps of `cloche setup` tell what they are doing."""

from __future__ import annotations

from typing import Protocol


class Report(Protocol):
    """Receives progress. Implementations live with the door that shows it."""

    def step(self, text: str) -> None:
        """A new step begins (which ends the one before)."""

    def advance(self, fraction: float) -> None:
        """The current step is *fraction* (0 to 1) done."""

    def note(self, text: str) -> None:
        """Something the user should know, but that stops nothing."""


class SilentReport:
    """A Report for callers that show nothing."""

    def step(self, text: str) -> None:
        """Say nothing."""

    def advance(self, fraction: float) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""
