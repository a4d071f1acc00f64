"""Errors and warnings: to stderr for people, to --log for engines (as runc writes them).

Much of what they say comes from guests, and engines print it on their users' terminals: so this
door makes all of it printable, in the log file too.
"""

from __future__ import annotations

import os
import time

from cloche.base import fastjson
from cloche.base.errors import ConfigError
from cloche.base.quick import suppress
from cloche.base.text import printable


class Log:
    """Where messages go. *path* empty: stderr only; *form* is `text` or `json`.

    The file is there from now on, as with runc; ConfigError where it cannot be.
    """

    def __init__(self, path: str = "", form: str = "text", *, debug: bool = False) -> None:
        # Absolute: what outlives the command leaves the caller's folder.
        self.path = os.path.abspath(path) if path else ""
        self.form = form
        self.is_debugging = debug
        if path:
            try:
                os.close(self._open())
            except OSError as error:
                cause = (error.strerror or str(error)).lower()
                raise ConfigError(f"--log {path}: {cause}", hint="its folder must exist") from None

    def error(self, message: str) -> None:
        """A failure: to the log file (engines show its last error), and to stderr."""
        self._record("error", message)
        self._say(message)

    def warning(self, message: str) -> None:
        """Something that is not as asked; to stderr only when no log file can be written."""
        if not self._record("warning", message):
            self._say(f"warning: {message}")

    def debug(self, message: str) -> None:
        """What may help to find a fault, where --debug asks for it; goes where warnings go."""
        if self.is_debugging and not self._record("debug", message):
            self._say(f"debug: {message}")

    @staticmethod
    def _say(message: str) -> None:
        os.write(2, f"cloche: {printable(message)}\n".encode(errors="replace"))

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return os.open(self.path, flags, 0o644)

    def _record(self, level: str, message: str) -> bool:
        """Whether *message* is in the log file now."""
        if not self.path:
            return False
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        shown = printable(message)
        if self.form == "json":
            line = fastjson.dumps({"level": level, "msg": shown, "time": now})
        else:
            line = f'time="{now}" level={level} msg={fastjson.dumps(shown)}'
        # A log that cannot be written must not hide the message: stderr has it.
        with suppress(OSError), open(self._open(), "w", encoding="utf-8") as file:
            file.write(line + "\n")
            return True
        return False
