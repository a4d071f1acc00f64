"""The memory of another process: its regions, and which of their pages it has written."""

from __future__ import annotations

import os
import re
import struct

from cloche.base.errors import ClocheError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4

# Pages that were not written are taken along when there are so few between two that were.
GAP = 8
_PROTECTION = (("r", PROT_READ), ("w", PROT_WRITE), ("x", PROT_EXEC))
_ANONYMOUS = ("", "[heap]", "[stack]")
_KERNELS_OWN = ("[vvar]", "[vvar_vclock]", "[vdso]")
# /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst)
_PRESENT, _SWAPPED, _OF_FILE = 1 << 63, 1 << 62, 1 << 61


class Region:
    """What one line of /proc/PID/maps tells of; *flags* are the VmFlags of smaps (proc(5))."""

    def __init__(self, line: str) -> None:
        words = line.rstrip("\n").split(maxsplit=5)
        self.start, self.end = (int(part, 16) for part in words[0].split("-"))
        self.protection = sum(bit for letter, bit in _PROTECTION if letter in words[1])
        self.is_shared = "s" in words[1]
        self.offset = int(words[2], 16)
        self.path = words[5] if len(words) > 5 else ""
        self.flags: list[str] = []

    @property
    def size(self) -> int:
        """In bytes."""
        return self.end - self.start

    @property
    def is_unreserved(self) -> bool:
        """Whether no memory is set aside for it (MAP_NORESERVE)."""
        return "nr" in self.flags

    @property
    def is_of_file(self) -> bool:
        """Whether a file's content is mapped."""
        return self.path.startswith("/")

    @property
    def is_anonymous(self) -> bool:
        """Whether it began as zeros."""
        return self.path in _ANONYMOUS or self.path.startswith("[anon")

    @property
    def is_kernels_own(self) -> bool:
        """Whether it is the vDSO, or data of it."""
        return self.path in _KERNELS_OWN


class Process:
    """The memory of process *pid*, as a context."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        # The kernel shows paths from our root; where that is in another mount namespace, as of a
        # chroot of ours, from the namespace's, and ours is on the way to each.
        self._root = os.readlink(f"/proc/{pid}/root").rstrip("/")
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        self._pages = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._memory)
        os.close(self._pages)

    def read(self, address: int, size: int) -> bytes:
        """What is there."""
        return os.pread(self._memory, size, address)

    def regions(self) -> list[Region]:
        """All of them, lowest first."""
        with open(f"/proc/{self.pid}/smaps", encoding="utf-8") as file:
            found = parse_smaps(file.read())
        for region in found:
            region.path = self._as_seen(region.path)
        return found

    def descriptors(self) -> dict[int, str]:
        """What each descriptor is, as readlink(2) has it."""
        folder = f"/proc/{self.pid}/fd"
        return {
            int(name): self._as_seen(os.readlink(f"{folder}/{name}")) for name in os.listdir(folder)
        }

    def descriptor_of(self, path: str) -> int:
        """The only descriptor that is open for *path*; ClocheError where it is not one."""
        found = [number for number, target in self.descriptors().items() if target == path]
        if len(found) != 1:
            raise ClocheError(f"freezing: QEMU has {path} open {len(found)} times")
        return found[0]

    def descriptors_of_memory(self, name: str) -> list[int]:
        """Those that are open for the memfd of that *name*."""
        target = f"/memfd:{name} (deleted)"
        return [number for number, found in self.descriptors().items() if found == target]

    def _as_seen(self, path: str) -> str:
        """*path* as the process itself would name it."""
        is_below = path.startswith(f"{self._root}/")
        return path.removeprefix(self._root) if is_below else path

    def written(self, region: Region) -> Iterator[tuple[int, int]]:
        """Address and size of each stretch of a private *region* that differs from its origin."""
        count, first = region.size // PAGE, region.start // PAGE
        entries = struct.iter_unpack("<Q", os.pread(self._pages, count * 8, first * 8))
        written = [
            bool(each & (_PRESENT | _SWAPPED)) and not each & _OF_FILE for (each,) in entries
        ]
        for start, end in stretches(written, GAP):
            yield region.start + start * PAGE, (end - start) * PAGE


def parse_smaps(text: str) -> list[Region]:
    """The regions that the text of /proc/PID/smaps tells of."""
    found: list[Region] = []
    for line in text.splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            found.append(Region(line))
        elif line.startswith("VmFlags:"):
            found[-1].flags = line.split()[1:]
    return found


def stretches(marks: list[bool], gap: int) -> Iterator[tuple[int, int]]:
    """First and last+1 index of each stretch of true values, over gaps of up to *gap* false."""
    start = end = -1
    for index, is_marked in enumerate(marks):
        if not is_marked:
            continue
        if start < 0:
            start = index
        elif index - end > gap:
            yield start, end
            start = index
        end = index + 1
    if start >= 0:
        yield start, end
