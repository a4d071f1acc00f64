"""The seccomp filter that has each connection QEMU makes decided on outside of it.

QEMU's user-mode network connects to whatever the guest names, and that may be the host's loopback:
10.0.2.2 is translated to 127.0.0.1, 10.0.2.3 to the host's name server, and a guest may name
127.0.0.1 or [::1] itself. No option of QEMU's tells these apart. What the kernel is asked for
does, and the kernel asks us (seccomp_unotify(2)). Whoever becomes QEMU is under the filter from
before its exec, be it started, restored or thawed.
"""

from __future__ import annotations

import os

from cloche.base import syscalls
from cloche.base.errors import ClocheError
from cloche.vmm.bpf import (
    ALLOW,
    ANY_BIT,
    ARGUMENTS,
    ASK,
    DENIED,
    EQUAL,
    LOAD,
    NO_SUCH_CALL,
    RETURN,
    Code,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

# System calls of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl)
CONNECT, SENDTO = 42, 44
_SENDMSG, _SENDMMSG, _IO_URING_SETUP = 46, 307, 425
_MSG_FASTOPEN = 0x2000_0000


def connect_filter() -> bytes:
    """Which system calls are asked about: connect(2), and sendto(2) where it names an address.

    Two more ways to connect, TCP's fast open and io_uring, are shut, as are other ABIs; QEMU does
    without them. sendmsg(2) is not asked about: QEMU talks to its channels with it.
    """
    code = Code()
    code.answer(CONNECT, ASK)
    code.answer(_IO_URING_SETUP, NO_SUCH_CALL)
    for number, flags in ((_SENDMSG, 2), (_SENDMMSG, 3)):
        code.add(EQUAL, number, yes=0, no=4)
        _deny_fast_open(code, flags)
        code.add(RETURN, ALLOW)
    code.add(EQUAL, SENDTO, yes=0, no=9)
    _deny_fast_open(code, 3)
    for half in (0, 4):  # its address: of 64 bits, where BPF knows 32
        code.add(LOAD, ARGUMENTS + 4 * 8 + half)
        code.add(EQUAL, 0, yes=1, no=0)
        code.add(RETURN, ASK)
    return code.finish(ALLOW)


def _deny_fast_open(code: Code, argument: int) -> None:
    """Three instructions: a TCP connection is not to be made by what sends."""
    code.add(LOAD, ARGUMENTS + argument * 8)
    code.add(ANY_BIT, _MSG_FASTOPEN, yes=0, no=1)
    code.add(RETURN, DENIED)


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
