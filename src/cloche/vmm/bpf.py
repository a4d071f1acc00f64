"""Programs for seccomp(2): classic BPF, written instruction by instruction; no I/O."""

from __future__ import annotations

import struct

# Classic BPF (linux/filter.h)
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# What a filter may return (linux/seccomp.h)
ALLOW, ASK = 0x7FFF_0000, 0x7FC0_0000
# ENOSYS, EACCES, EPERM
NO_SUCH_CALL, DENIED, NOT_PERMITTED = 0x0005_0000 | 38, 0x0005_0000 | 13, 0x0005_0000 | 1
# struct seccomp_data: the number of the call, what it was made as, and its arguments of 64 bits.
NUMBER, ARCH, ARGUMENTS = 0, 4, 16
_X32 = 0x4000_0000
_ARCH_X86_64 = 0xC000_003E


class Code:
    """struct sock_filter[], as it is written. It begins with the call's number loaded.

    Calls of other ABIs are answered as if there were none such.
    """

    def __init__(self) -> None:
        self.encoded = bytearray()
        self.add(LOAD, ARCH)
        self.add(EQUAL, _ARCH_X86_64, yes=1, no=0)
        self.add(RETURN, NO_SUCH_CALL)
        self.add(LOAD, NUMBER)
        self.add(AT_LEAST, _X32, yes=0, no=1)
        self.add(RETURN, NO_SUCH_CALL)

    def add(self, code: int, value: int, *, yes: int = 0, no: int = 0) -> None:
        """One instruction; a jump leaves out *yes* or *no* of those that follow."""
        self.encoded += struct.pack("=HBBI", code, yes, no, value)

    def answer(self, number: int, answer: int) -> None:
        """Answer the call *number*, which is loaded; all others go on."""
        self.add(EQUAL, number, yes=0, no=1)
        self.add(RETURN, answer)

    def finish(self, answer: int) -> bytes:
        """The program, which gives that *answer* to whatever comes to its end."""
        self.add(RETURN, answer)
        return bytes(self.encoded)
