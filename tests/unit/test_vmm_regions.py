"""The memory of a process: what smaps tells, and which pages were written."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.vmm.regions import (
    PAGE,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    Process,
    Region,
    parse_smaps,
    stretches,
)

MAPS = {
    "binary": "555555554000-5555558d8000 r--p 00000000 fe:00 10166320        /usr/bin/a b",
    "data": "555556000000-555556100000 rw-p 00ab1000 fe:00 10166320        /usr/bin/a b",
    "heap": "555556f0f000-555557a2e000 rw-p 00000000 00:00 0        [heap]",
    "jit": "7fff5c000000-7fff7c000000 rwxp 00000000 00:00 0 ",
    "guard": "7ffff0000000-7ffff0001000 ---p 00000000 00:00 0 ",
    "named": "7ffff1000000-7ffff1001000 rw-p 00000000 00:00 0        [anon:pool]",
    "shared": "7ffff2000000-7ffff2001000 rw-s 00003000 00:01 2057        /dev/zero",
    "gone": "7ffff3000000-7ffff3001000 r--p 00000000 fe:00 99        /lib/x (deleted)",
    "vvar": "7ffff7fc1000-7ffff7fc5000 r--p 00000000 00:00 0        [vvar]",
    "vdso": "7ffff7fc5000-7ffff7fc7000 r-xp 00000000 00:00 0        [vdso]",
    "stack": "7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0        [stack]",
    "vsyscall": "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0        [vsyscall]",
}
DETAILS = """\
Size:               3600 kB
KernelPageSize:        4 kB
Rss:                 232 kB
Private_Dirty:         0 kB
THPeligible:           0
VmFlags: {flags} 
"""  # noqa: W291 (as the kernel writes it)
FLAGS = {"jit": "rd wr ex mr mw me nr sd"}


@pytest.fixture(scope="module")
def parsed() -> dict[str, Region]:
    """The regions above, by their names."""
    entries = [
        f"{line}\n{DETAILS.format(flags=FLAGS.get(name, 'rd mr mw'))}"
        for name, line in MAPS.items()
    ]
    return dict(zip(MAPS, parse_smaps("".join(entries)), strict=True))


def test_addresses_offsets_and_paths(parsed: dict[str, Region]) -> None:
    data = parsed["data"]
    assert (data.start, data.end, data.size) == (0x555556000000, 0x555556100000, 1 << 20)
    assert (data.offset, data.path) == (0xAB1000, "/usr/bin/a b")
    assert parsed["jit"].path == ""
    assert parsed["vsyscall"].end == 0xFFFFFFFFFF601000


def test_protection(parsed: dict[str, Region]) -> None:
    wanted = {
        "binary": PROT_READ,
        "data": PROT_READ | PROT_WRITE,
        "jit": PROT_READ | PROT_WRITE | PROT_EXEC,
        "guard": 0,
        "vdso": PROT_READ | PROT_EXEC,
        "vsyscall": PROT_EXEC,
    }
    assert {name: parsed[name].protection for name in wanted} == wanted


def names(parsed: dict[str, Region], attribute: str) -> set[str]:
    """The regions of which that holds."""
    return {name for name, region in parsed.items() if getattr(region, attribute)}


def test_kinds(parsed: dict[str, Region]) -> None:
    assert names(parsed, "is_of_file") == {"binary", "data", "shared", "gone"}
    assert names(parsed, "is_anonymous") == {"heap", "jit", "guard", "named", "stack"}
    assert names(parsed, "is_kernels_own") == {"vvar", "vdso"}
    assert names(parsed, "is_shared") == {"shared"}
    assert names(parsed, "is_unreserved") == {"jit"}


def test_a_flag_is_a_whole_word() -> None:
    (region,) = parse_smaps(f"{MAPS['heap']}\n{DETAILS.format(flags='rd wr nrx xnr')}")
    assert not region.is_unreserved
    assert region.flags == ["rd", "wr", "nrx", "xnr"]


def test_a_detail_of_hexadecimal_letters_is_no_region() -> None:
    assert parse_smaps("") == []
    assert len(parse_smaps(f"{MAPS['heap']}\nfeed:      4 kB\n")) == 1


@given(st.lists(st.booleans(), max_size=200), st.integers(0, 10))
def test_stretches(marks: list[bool], gap: int) -> None:
    found = [*stretches(marks, gap)]
    covered = [index for start, end in found for index in range(start, end)]
    assert covered == sorted({*covered})
    assert {index for index, mark in enumerate(marks) if mark} <= {*covered}
    for start, end in found:
        assert marks[start]
        assert marks[end - 1]
        unmarked = "".join(" x"[mark] for mark in marks[start:end]).split("x")
        assert max(map(len, unmarked)) <= gap
    # None could have been joined to the next.
    for (_, end), (start, _) in pairwise(found):
        assert start - end > gap


@pytest.mark.parametrize(
    ("text", "gap", "wanted"),
    [
        ("", 8, []),
        ("...", 8, []),
        ("x", 0, [(0, 1)]),
        (".x.x.", 0, [(1, 2), (3, 4)]),
        (".x.x.", 1, [(1, 4)]),
        ("x..x...x", 2, [(0, 4), (7, 8)]),
    ],
)
def test_some_stretches(text: str, gap: int, wanted: list[tuple[int, int]]) -> None:
    assert [*stretches([mark == "x" for mark in text], gap)] == wanted


@pytest.fixture
def process() -> Iterator[Process]:
    """This process."""
    with Process(os.getpid()) as found:
        yield found


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[tuple[mmap.mmap, str]]:
    """100 pages of a file, mapped copy-on-write, and the file's name."""
    path = tmp_path / "file"
    path.write_bytes(b"".join(bytes([number]) * PAGE for number in range(100)))
    with path.open("rb") as file:
        memory = mmap.mmap(
            file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
    yield memory, str(path)
    memory.close()


def region_of(process: Process, path: str) -> Region:
    """Where the file *path* is mapped."""
    (found,) = [region for region in process.regions() if region.path == path]
    return found


def test_pages_of_a_file_that_were_written(process: Process, mapped: tuple[mmap.mmap, str]) -> None:
    memory, path = mapped
    region = region_of(process, path)
    assert (region.size, region.is_of_file, region.is_shared) == (100 * PAGE, True, False)
    assert sum(memory[::PAGE]) == sum(range(100))  # reading makes no copy
    assert [*process.written(region)] == []
    memory[50 * PAGE] = 255
    memory[53 * PAGE + 5] = 255
    memory[99 * PAGE] = 255
    written = [*process.written(region)]
    # The two that are close to each other are taken together.
    assert written == [
        (region.start + 50 * PAGE, 4 * PAGE),
        (region.start + 99 * PAGE, PAGE),
    ]
    address, size = written[0]
    assert process.read(address, size) == memory[50 * PAGE : 54 * PAGE]


def test_anonymous_pages_that_were_written(process: Process) -> None:
    memory = mmap.mmap(-1, 1 << 24, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    memory[1 << 20] = 255
    (region,) = [each for each in process.regions() if each.start <= address < each.end]
    assert region.is_anonymous
    written = [*process.written(region)]
    page = address + (1 << 20)
    (found,) = [(start, size) for start, size in written if start <= page < start + size]
    # Only what is near: the kernel may have given a huge page.
    assert found[1] <= 1 << 21
    assert process.read(page, 2) == b"\xff\0"


def test_a_process_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        Process(1 << 30)
