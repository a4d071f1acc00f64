"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os


def write_atomically(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write *data* to a new file beside *path* and rename it there."""
    temporary = f"{path}.{os.getpid()}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            file.write(data)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def read_text(path: str) -> str | None:
    """The text of the file, or None where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
