"""Errors and warnings: to stderr for people, to --log for engines (as runc writes them)."""

from __future__ import annotations

import os
import time

from cloche.base import fastjson
from cloche.base.quick import suppress

LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}


class Log:
    """Where messages go. *path* empty: stderr only; *form* is `text` or `json`."""

    def __init__(self, path: str = "", form: str = "text", *, debug: bool = False) -> None:
        self.path = path
        self.form = form
        self.debug = debug

    def error(self, message: str) -> None:
        """A failure: to the log file (engines show its last error), and to stderr."""
        self._record("error", message)
        os.write(2, f"cloche: {message}\n".encode(errors="replace"))

    def warning(self, message: str) -> None:
        """Something that is not as asked; to stderr only when no log file can be written."""
        if not self._record("warning", message):
            os.write(2, f"cloche: warning: {message}\n".encode(errors="replace"))

    def _record(self, level: str, message: str) -> bool:
        """Whether *message* is in the log file now."""
        if not self.path:
            return False
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self.form == "json":
            line = fastjson.dumps({"level": level, "msg": message, "time": now})
        else:
            line = f'time="{now}" level={level} msg={fastjson.dumps(message)}'
        # A log that cannot be written must not hide the message: stderr has it.
        with suppress(OSError), open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            return True
        return False
