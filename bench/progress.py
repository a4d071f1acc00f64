"""What the benchmark is doing right now, on stderr: stdout carries the result only."""

from __future__ import annotations

import sys
import time


class Progress:
    """A line per case; on a terminal it counts the rounds while they run."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        self._title = ""
        self._step_began = self._began

    def step(self, title: str) -> None:
        """A new case begins."""
        self._title = title
        self._step_began = time.monotonic()
        if not self._terminal:
            self._say(f"{title} …")
        else:
            self._draw("…")

    def round(self, done: int, wanted: int) -> None:
        """*done* of *wanted* rounds of the case are over."""
        if self._terminal:
            self._draw(f"{done}/{wanted}")

    def done(self, outcome: str = "done") -> None:
        """The case is over."""
        seconds = time.monotonic() - self._step_began
        if self._terminal:
            self._draw(f"{outcome} ({seconds:.1f} s)")
            print(file=sys.stderr)
        else:
            self._say(f"{self._title}: {outcome} ({seconds:.1f} s)")

    def note(self, text: str) -> None:
        """Something that the reader should know; the result says it too."""
        if self._terminal:
            print("\r\033[K", end="", file=sys.stderr)
        self._say(f"note: {text}")

    def _draw(self, text: str) -> None:
        print(f"\r\033[K{self._title}: {text}", end="", file=sys.stderr, flush=True)

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began:5.1f} s] {text}", file=sys.stderr, flush=True)
