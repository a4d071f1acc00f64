"""Which processes on the host belong to a runtime's containers, and the memory they take."""

from __future__ import annotations

import array
import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
# The vsyscall page above it has no place in a pagemap.
_USER_SPACE_END = 1 << 47
# Bits of a pagemap entry: present in memory; page frame number.
_PRESENT = 1 << 63
_FRAME = (1 << 55) - 1


@dataclass(frozen=True)
class Process:
    """A process on the host; *argv* is empty for one that never executed a program."""

    pid: int
    parent: int
    command: str
    argv: tuple[str, ...]


@dataclass(frozen=True)
class Usage:
    """Memory of some processes together, in KiB.

    *pss_kib* is the sum of their proportional shares, *private_kib* of what each has to itself.
    *alone_kib* counts every page that one of them maps once, whoever else maps it: what their
    PSS would be with nothing else on the machine.
    """

    pss_kib: int
    private_kib: int
    alone_kib: int


def all_processes() -> list[Process]:
    """Every process of the host as it is now."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found.append(_read(int(entry.name)))
    return found


def _read(pid: int) -> Process:
    stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    before, _, after = stat.rpartition(")")
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    argv = tuple(arguments.rstrip("\0").split("\0")) if arguments else ()
    return Process(pid, int(after.split()[1]), before.partition("(")[2], argv)


def processes_below(root: Path, processes: list[Process], own: int) -> list[Process]:
    """Those that name the folder *root* on their command line, and all their descendants.

    Every runtime is given a root folder that nothing else uses, and what it starts names that.
    *own*, the benchmark's pid, is left out.
    """
    pattern = re.compile(re.escape(str(root)) + r"(/|,|$)")
    inside = {
        process.pid
        for process in processes
        if any(pattern.search(argument) for argument in process.argv)
    }
    grown = True
    while grown:
        more = {process.pid for process in processes if process.parent in inside} - inside
        inside |= more
        grown = bool(more)
    return [process for process in processes if process.pid in inside and process.pid != own]


def cgroups_of(container: str) -> list[Path]:
    """The cgroup folders of *container* (a pattern) in all hierarchies, as cloche makes them."""
    # cgroup v2 alone has the folder at the top, v1 one in each hierarchy.
    root = Path("/sys/fs/cgroup")
    return [*root.glob(f"cloche/{container}"), *root.glob(f"*/cloche/{container}")]


def remove_cgroups(container: str) -> None:
    """Remove the cgroups of *container* (a pattern); one that has processes in it stays."""
    for path in cgroups_of(container):
        with contextlib.suppress(OSError):
            path.rmdir()


def memory_of(pids: Iterable[int]) -> Usage:
    """What *pids* take together; a process that is gone takes nothing."""
    pss, private = 0, 0
    pages: set[int] = set()
    for pid in pids:
        # ProcessLookupError: it ended while it was looked at.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            one_pss, one_private = parse_rollup(Path(f"/proc/{pid}/smaps_rollup").read_text())
            pages |= _pages(pid)
            pss += one_pss
            private += one_private
    return Usage(pss, private, len(pages) * _PAGE // 1024)


def parse_rollup(text: str) -> tuple[int, int]:
    """PSS and private memory in KiB from a smaps_rollup (proc(5))."""
    values = {
        name: int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    }
    return values["Pss"], values["Private_Clean"] + values["Private_Dirty"]


def _pages(pid: int) -> set[int]:
    """The numbers of the physical pages that *pid* maps, from /proc/PID/pagemap (proc(5))."""
    pages: set[int] = set()
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, end = (int(address, 16) for address in line.split(maxsplit=1)[0].split("-"))
            if start < _USER_SPACE_END:
                pagemap.seek(start // _PAGE * 8)
                data = pagemap.read((end - start) // _PAGE * 8)
                pages.update(present_pages(data))
    return pages


def present_pages(pagemap: bytes) -> list[int]:
    """The page frame numbers in *pagemap*, of the pages that are in memory."""
    entries = array.array("Q", pagemap)
    return [entry & _FRAME for entry in entries if entry & _PRESENT]
