"""The seccomp filter that has each connection QEMU makes decided on outside of it.

QEMU's user-mode network connects to whatever the guest names, and that may be the host's loopback:
10.0.2.2 is translated to 127.0.0.1, 10.0.2.3 to the host's name server, and a guest may name
127.0.0.1 or [::1] itself. No option of QEMU's tells these apart. What the kernel is asked for
does, and the kernel asks us (seccomp_unotify(2)). Whoever becomes QEMU is under the filter from
before its exec, be it started, restored or thawed.
"""

from __future__ import annotations

import os
import struct

from cloche.base import syscalls
from cloche.base.errors import ClocheError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

# System calls of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl)
CONNECT, SENDTO = 42, 44
_SENDMSG, _SENDMMSG, _IO_URING_SETUP = 46, 307, 425
_X32 = 0x4000_0000
_ARCH_X86_64 = 0xC000_003E
_MSG_FASTOPEN = 0x2000_0000
# Classic BPF (linux/filter.h) and what a filter may return (linux/seccomp.h)
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ASK = 0x7FFF_0000, 0x7FC0_0000
_NO_SUCH_CALL, _DENIED = 0x0005_0000 | 38, 0x0005_0000 | 13  # ENOSYS, EACCES
# struct seccomp_data
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16


def connect_filter() -> bytes:
    """Which system calls are asked about: connect(2), and sendto(2) where it names an address.

    Two more ways to connect, TCP's fast open and io_uring, are shut, as are other ABIs; QEMU does
    without them. sendmsg(2) is not asked about: QEMU talks to its channels with it.
    """
    code = _Code()
    code.unless(_ARCH, _ARCH_X86_64, _NO_SUCH_CALL)
    code.add(_LOAD, _NUMBER)
    code.add(_AT_LEAST, _X32, yes=0, no=1)
    code.add(_RETURN, _NO_SUCH_CALL)
    for number, answer in ((CONNECT, _ASK), (_IO_URING_SETUP, _NO_SUCH_CALL)):
        code.add(_EQUAL, number, yes=0, no=1)
        code.add(_RETURN, answer)
    for number, flags in ((_SENDMSG, 2), (_SENDMMSG, 3)):
        code.add(_EQUAL, number, yes=0, no=4)
        code.deny_fast_open(flags)
        code.add(_RETURN, _ALLOW)
    code.add(_EQUAL, SENDTO, yes=0, no=9)
    code.deny_fast_open(3)
    for half in (0, 4):  # its address: of 64 bits, where BPF knows 32
        code.add(_LOAD, _ARGUMENTS + 4 * 8 + half)
        code.add(_EQUAL, 0, yes=1, no=0)
        code.add(_RETURN, _ASK)
    code.add(_RETURN, _ALLOW)
    return bytes(code.encoded)


class _Code:
    """struct sock_filter[], as it is written."""

    def __init__(self) -> None:
        self.encoded = bytearray()

    def add(self, code: int, value: int, *, yes: int = 0, no: int = 0) -> None:
        """One instruction; a jump leaves out *yes* or *no* of those that follow."""
        self.encoded += struct.pack("=HBBI", code, yes, no, value)

    def unless(self, offset: int, value: int, answer: int) -> None:
        """Answer unless the word at *offset* is *value*."""
        self.add(_LOAD, offset)
        self.add(_EQUAL, value, yes=1, no=0)
        self.add(_RETURN, answer)

    def deny_fast_open(self, argument: int) -> None:
        """Three instructions: a TCP connection is not to be made by what sends."""
        self.add(_LOAD, _ARGUMENTS + argument * 8)
        self.add(_ANY_BIT, _MSG_FASTOPEN, yes=0, no=1)
        self.add(_RETURN, _DENIED)


def come_under(channel: _socket.socket) -> None:
    """Put this process under the filter for good, and send its questions' descriptor to *channel*.

    ClocheError where the kernel cannot do it (before Linux 5.5, or under another such filter). The
    process has given up all new privileges before.
    """
    import _socket

    try:
        listener = syscalls.seccomp_listener(connect_filter())
    except OSError as error:
        raise ClocheError(
            f"the host's loopback cannot be kept from its user-mode network: seccomp: "
            f"{(error.strerror or '').lower()}",
            hint="--network none has none, --host-loopback all does without",
        ) from None
    rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, listener.to_bytes(4, "little"))
    channel.sendmsg([b"."], [rights])
    os.close(listener)
