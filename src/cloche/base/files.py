"""Files that are whole or not there."""

from __future__ import annotations

import os

from cloche.base.quick import suppress


def write_atomically(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write *data* to a new file beside *path* and rename it there."""
    temporary = f"{path}.{os.getpid()}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            file.write(data)
        os.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def read_text(path: str) -> str | None:
    """The text of the file, or None where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


class short_path:
    """`with short_path(path) as short`: a form of *path* that fits a socket's address.

    That holds 107 bytes (unix(7)); engines give roots far longer than that.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> str:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        self._fd = os.open(os.path.dirname(self._path) or ".", flags)
        return f"/proc/self/fd/{self._fd}/{os.path.basename(self._path)}"

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
