"""Processes of the host that stand for a guest's, for as long as ``docker top`` looks at them.

dockerd asks the runtime for pids (``ps --format json``), then runs the host's own ``ps`` and keeps
the lines of those pids. The processes of a VM have no pids on the host, so each gets a stand-in: a
process with the same user, name and arguments, that does nothing and ends by itself.

A stand-in is a program of 158 bytes that is never written to a disk: it takes its first argument
as its name, sets an alarm and sleeps until the alarm kills it. One costs about a millisecond.

Imported by ``ps`` only; os and struct are all it needs.
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

LIFETIME_SECONDS = 3
"""dockerd runs its ``ps`` at once; a loaded machine may need a moment to get to it."""

MOST = 512
LONGEST = 4096
"""Bounds on what an untrusted guest can make of the host: stand-ins, and bytes of one command."""

_BASE = 0x400000
_HEADERS = 64 + 56


def stand_in(processes: Iterable[tuple[int, str]]) -> list[int]:
    """Start a stand-in for each (uid, command line) of *processes*; their pids, in that order.

    They are children of the caller, whose exit leaves them to the nearest subreaper. At most
    ``MOST`` are started; all of them look as they are to when this returns. OSError if one cannot
    be started.
    """
    program = os.memfd_create("stand-in", os.MFD_CLOEXEC)
    executed, unexecuted = os.pipe()
    try:
        os.write(program, _elf())
        bounded = [process for _, process in zip(range(MOST), processes, strict=False)]
        pids = [_start(program, uid, command) for uid, command in bounded]
    finally:
        os.close(unexecuted)
        os.close(program)
        # The children's copies are closed by their execve: then the pipe has ended.
        os.read(executed, 1)
        os.close(executed)
    return pids


def _start(program: int, uid: int, command: str) -> int:
    argv = [os.fsencode(word) for word in command[:LONGEST].replace("\0", " ").split(" ")]
    pid = os.fork()
    if pid:
        return pid
    try:
        # Whoever reads our output waits until nobody can write to it any more.
        null = os.open("/dev/null", os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        if uid != os.getuid():
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
        os.execve(program, argv, {})
    finally:
        os._exit(127)


def _elf() -> bytes:
    """A static x86-64 program of one segment: ELF header, program header, code."""
    code = bytes.fromhex(
        "488b742408"  # mov rsi, [rsp+8]       argv[0]
        "bf0f000000"  # mov edi, 15            PR_SET_NAME
        "b89d000000"  # mov eax, 157           prctl
        "0f05"  #       syscall
        f"bf{LIFETIME_SECONDS:02x}000000"  # mov edi, seconds
        "b825000000"  # mov eax, 37            alarm
        "0f05"  #       syscall
        "b822000000"  # mov eax, 34            pause
        "0f05"  #       syscall
        "ebf7"  #       jmp to mov eax, 34
    )
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    executable, x86_64, loadable, readable_and_executable = 2, 62, 1, 5
    size = _HEADERS + len(code)
    header = (ident, executable, x86_64, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = (loadable, readable_and_executable, 0, _BASE, _BASE, size, size, 4096)
    return struct.pack("<16sHHIQQQIHHHHHH", *header) + struct.pack("<IIQQQQQQ", *segment) + code
