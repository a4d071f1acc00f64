"""Whether what starts share still holds what was written: checksums, and what is known of them.

A bit that flips in a memory image crashes a guest, or worse, does not. Reading 200 MiB takes
100 ms, so no start does so: it looks at a small file beside the image, which says that these very
files were found whole since the host was booted. Where it does not say so the image is read in the
background (heart.verifier) once the start has succeeded; where a guest of it has crashed, before
the next start.
"""

from __future__ import annotations

import os
import zlib
from time import time

from cloche.base import fastjson
from cloche.base.errors import DamagedError
from cloche.base.files import read_text, write_atomically
from cloche.base.quick import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

VERIFIED, SUSPECT, DAMAGED, MANIFEST = "verified", "suspect", "damaged", "manifest.json"
# A guest may crash as often as it likes, and what was read just now need not be read again.
TRUSTED_S = 600
_BLOCK = 1 << 16
_ZEROS = bytes(_BLOCK)


def checksum(path: str) -> int:
    """CRC-32 of what the file holds, wherever its holes are: blocks of zeros do not count."""
    crc = 0
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for start in _blocks(fd, os.fstat(fd).st_size):
            block = os.pread(fd, _BLOCK, start)
            if block != _ZEROS[: len(block)]:
                crc = zlib.crc32(block, zlib.crc32(start.to_bytes(8, "little"), crc))
    finally:
        os.close(fd)
    return crc


def _blocks(fd: int, size: int) -> Iterator[int]:
    """Where the blocks begin that are no holes."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole follows
            return
        end = -(-os.lseek(fd, start, os.SEEK_HOLE) // _BLOCK) * _BLOCK
        yield from range(start // _BLOCK * _BLOCK, end, _BLOCK)


class Image:
    """The files *names* in *folder*, whose checksums are in its manifest."""

    def __init__(self, folder: str, names: Sequence[str]) -> None:
        self.folder = folder
        self.names = names

    def path(self, name: str) -> str:
        """The path of a file in it."""
        return os.path.join(self.folder, name)

    def sums(self) -> dict[str, int]:
        """What its manifest is to hold as `sums`; OSError where a file is not there."""
        return {name: checksum(self.path(name)) for name in self.names}

    def has_sums(self, manifest: dict[str, Any]) -> bool:
        """Whether *manifest* tells what each file was."""
        sums = manifest.get("sums")
        return isinstance(sums, dict) and all(
            isinstance(sums.get(each), int) for each in self.names
        )

    def is_known(self) -> bool:
        """Whether these very files were found whole, since the host was booted."""
        return bool(self._noted() == self._state())

    def is_suspect(self) -> bool:
        """Whether a guest that came from it has crashed, since it was last read."""
        return os.path.exists(self.path(SUSPECT))

    def note_suspect(self) -> None:
        """A guest has crashed: read it before it is used again, unless that was done just now."""
        with suppress(OSError):
            age = time() - os.stat(self.path(VERIFIED)).st_mtime
            if 0 <= age < TRUSTED_S and self.is_known():
                return
        with suppress(OSError):  # where nothing can be written nothing is changed
            os.close(os.open(self.path(SUSPECT), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def note_known(self) -> None:
        """It is whole as it is now."""
        with suppress(OSError):
            write_atomically(self.path(VERIFIED), fastjson.dumps(self._state()).encode())
            os.unlink(self.path(SUSPECT))

    def verify(self) -> None:
        """Read it, and keep the result; DamagedError, and it is out of use, where it is damaged."""
        try:
            before = self._state()
            damaged = self.damaged()
            if before != self._state():
                return  # another one has taken its place
        except OSError:
            return  # it is gone
        if damaged:
            self.put_out_of_use(f"checksum of {damaged}")
            raise DamagedError(f"{self.path(damaged)}: damaged: its checksum is not the maker's")
        self.note_known()

    def damaged(self) -> str:
        """The first of its files that is not what was written; empty where all are."""
        try:
            sums = fastjson.loads(read_text(self.path(MANIFEST)) or "{}")["sums"]
            return next(
                (name for name in self.names if checksum(self.path(name)) != sums[name]), ""
            )
        except (ValueError, KeyError, TypeError):
            return ""  # none that any start takes

    def put_out_of_use(self, why: str) -> None:
        """No start takes it from now on; the next makes another one, and says *why*."""
        with suppress(OSError):
            write_atomically(self.path(DAMAGED), why.encode())
            os.unlink(self.path(MANIFEST))

    def why_out_of_use(self) -> str:
        """What was wrong with the one before; empty where nothing was."""
        return read_text(self.path(DAMAGED)) or ""

    def _noted(self) -> Any:  # noqa: ANN401 (what _state gives, if it is ours)
        with suppress(OSError, ValueError):
            return fastjson.loads(read_text(self.path(VERIFIED)) or "0")
        return None

    def _state(self) -> list[Any]:
        """What changes when a file is another one, was written to, or the host was booted."""
        stats = [os.stat(self.path(name)) for name in self.names]
        times = [[s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for s in stats]
        return [read_text("/proc/sys/kernel/random/boot_id"), *times]
