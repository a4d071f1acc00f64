"""Programs for bundles that are so small that every system call of theirs is known."""

from __future__ import annotations

import struct
from pathlib import Path

_BASE = 0x400000
_HEADERS = 64 + 56

_PAUSE, _FCNTL, _GETEUID, _EXIT_GROUP = 34, 72, 107, 231
_F_GETPIPE_SZ = 1032

DIES = b"\x0f\x0b"
"""Makes no system call at all: an instruction that is none, so SIGILL."""
DIED = 128 + 4

# mov eax, NUMBER; syscall; and back to its beginning
WAITS = b"\xb8" + struct.pack("<I", _PAUSE) + b"\x0f\x05\xeb\xf7"
"""Calls pause(2) for ever."""

# mov eax, NUMBER; syscall; mov edi, eax; and the same for exit_group
TELLS_USER = (
    b"\xb8" + struct.pack("<I", _GETEUID) + b"\x0f\x05\x89\xc7"
    b"\xb8" + struct.pack("<I", _EXIT_GROUP) + b"\x0f\x05"
)
"""Exits with its effective user, modulo 256."""

# fcntl(1, F_GETPIPE_SZ); shr eax, 16; mov edi, eax; and exit_group
TELLS_PIPE_SIZE = (
    b"\xb8"
    + struct.pack("<I", _FCNTL)
    + b"\xbf"
    + struct.pack("<I", 1)
    + b"\xbe"
    + struct.pack("<I", _F_GETPIPE_SZ)
    + b"\x0f\x05\xc1\xe8\x10\x89\xc7"
    b"\xb8" + struct.pack("<I", _EXIT_GROUP) + b"\x0f\x05"
)
"""Exits with the size of the pipe that is its stdout, in units of 64 KiB."""


def write_program(path: Path, code: bytes) -> None:
    """Make *path* a static x86-64 program of *code* (elf(5))."""
    size = _HEADERS + len(code)
    header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + header + segment + code)
    path.chmod(0o755)


# mov eax, NUMBER; xor edi, edi; syscall; and an end by SIGILL if that was denied
SUCCEEDS = b"\xb8" + struct.pack("<I", _EXIT_GROUP) + b"\x31\xff\x0f\x05" + DIES
"""Calls exit_group(2) with 0."""
