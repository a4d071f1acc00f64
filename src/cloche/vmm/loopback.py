"""Keeps a guest with QEMU's user-mode network off the host's loopback, save what it may reach.

The filter (connect_filter.py) has the kernel ask about each connection. Those for TCP are made
here, with an address that QEMU cannot change any more; a datagram is sent by QEMU itself, if its
address is a fit one when we look.
"""

from __future__ import annotations

import _socket  # socket proper imports selectors and enum, 5 ms
import fcntl
import os
import struct

from cloche.base import syscalls
from cloche.base.files import read_text
from cloche.base.loop import HANGUP, READ, Loop
from cloche.base.quick import suppress
from cloche.vmm.connect_filter import CONNECT, come_under

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

# <linux/seccomp.h>
_RECV, _SEND, _ID_VALID = 0xC050_2100, 0xC018_2101, 0x4008_2102
_QUESTION, _ANSWER = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")
_CONTINUE = 1
_LONGEST_ADDRESS = 128  # struct sockaddr_storage
# errno(3)
_EACCES, _EFAULT, _EISCONN, _ECONNREFUSED, _EALREADY, _EINPROGRESS = 13, 14, 106, 111, 114, 115
_UNSPECIFIED, _IPV4, _IPV6 = 0, 2, 10
_MAPPED = bytes(10) + b"\xff\xff"
DNS_PORT = 53


def destination(address: bytes) -> tuple[bytes, int] | None:
    """IP address and port of a struct sockaddr; None where it has none."""
    family = int.from_bytes(address[:2], "little")
    port = int.from_bytes(address[2:4], "big")
    if family == _IPV4 and len(address) >= 8:
        return address[4:8], port
    if family == _IPV6 and len(address) >= 24:
        ip = address[8:24]
        return (ip[12:] if ip.startswith(_MAPPED) else ip), port
    return None


def is_loopback(ip: bytes) -> bool:
    """Whether the host itself is connected to at *ip*; the unspecified address means that, too."""
    if len(ip) == 4:
        return ip[0] in (0, 127)
    return not any(ip[:15]) and ip[15] in (0, 1)


def name_servers(path: str = "/etc/resolv.conf") -> list[bytes]:
    """The host's, which QEMU hands the guest's DNS queries to."""
    found = []
    for line in (read_text(path) or "").splitlines():
        words = line.split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            for family in (_socket.AF_INET, _socket.AF_INET6):
                with suppress(OSError):
                    found.append(_socket.inet_pton(family, words[1].partition("%")[0]))
    return found


class HostLoopback:
    """Decides on the connections of one VM; *ports* of the host's loopback are open to it."""

    def __init__(self, loop: Loop, ports: Collection[int]) -> None:
        self._loop = loop
        self._ports = ports
        self._pid = 0
        self._theirs: _socket.socket | None = None
        # Called with the port, when a connection to the host's loopback is refused.
        self.on_refusal: Callable[[int], object] = lambda port: None

    def prepare(self) -> Callable[[], None]:
        """For a QEMU that is about to be started: what it has to do before its exec."""
        ours, theirs = _socket.socketpair()
        self._theirs = theirs
        self._loop.watch(ours.fileno(), READ, lambda _: self._receive(ours))
        return lambda: come_under(theirs)

    def started(self, pid: int) -> None:
        """It is process *pid* now."""
        self._pid = pid
        if self._theirs is not None:
            self._theirs.close()
        self._theirs = None

    def _receive(self, channel: _socket.socket) -> None:
        """The descriptor of its questions has come, or it has ended before."""
        with suppress(OSError):
            _, ancillary, _, _ = channel.recvmsg(1, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC)
            for _, _, data in ancillary:
                self._listen(int.from_bytes(data[:4], "little"), self._pid)
        self._loop.unwatch(channel.fileno())
        channel.close()

    def _listen(self, listener: int, pid: int) -> None:
        self._loop.watch(listener, READ, lambda events: self._asked(listener, pid, events))

    def _asked(self, listener: int, pid: int, events: int) -> None:
        if events & HANGUP and not events & READ:
            self._loop.unwatch(listener)
            os.close(listener)
            return
        question = bytearray(_QUESTION.size)
        try:
            fcntl.ioctl(listener, _RECV, question)
        except OSError:  # who asked was killed
            return
        number, _, _, call, _, _, *arguments = _QUESTION.unpack(question)
        try:
            error, go_on = self._decide(listener, pid, number, call, arguments)
        except (OSError, OverflowError):
            error, go_on = _EFAULT, False
        answer = _ANSWER.pack(number, 0, -error, _CONTINUE if go_on else 0)
        with suppress(OSError):
            fcntl.ioctl(listener, _SEND, answer)

    def _decide(
        self, listener: int, pid: int, number: int, call: int, arguments: list[int]
    ) -> tuple[int, bool]:
        """The error that it is told, 0 being none, and whether its call is to go on by itself."""
        fd, *_ = arguments
        pointer, size = arguments[1:3] if call == CONNECT else arguments[4:6]
        memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            address = os.pread(memory, min(size, _LONGEST_ADDRESS), pointer)
        finally:
            os.close(memory)
        fcntl.ioctl(listener, _ID_VALID, struct.pack("=Q", number))  # else it was another process
        if error := self._objection(address, can_be_none=call == CONNECT):
            return error, False
        if call != CONNECT:
            return 0, True
        return _connect(pid, fd & 0xFFFF_FFFF, address), False

    def _objection(self, address: bytes, *, can_be_none: bool) -> int:
        """Why nothing may be connected to *address*, as an errno; 0: it may."""
        named = destination(address)
        if named is None:
            is_none = can_be_none and int.from_bytes(address[:2], "little") == _UNSPECIFIED
            return 0 if is_none else _EACCES
        ip, port = named
        if not is_loopback(ip) or port in self._ports:
            return 0
        if port == DNS_PORT and ip in name_servers():
            return 0
        self.on_refusal(port)
        return _ECONNREFUSED


def _connect(pid: int, number: int, address: bytes) -> int:
    """Connect socket *number* of process *pid*; the errno of that."""
    pidfd = os.pidfd_open(pid)
    try:
        fd = syscalls.pidfd_getfd(pidfd, number)
    finally:
        os.close(pidfd)
    try:
        if os.get_blocking(fd):
            return _EACCES  # no socket of the user-mode network: we are not to wait for it
        error = syscalls.connect(fd, address)
    finally:
        os.close(fd)
    # Asked again after a signal, it has been connected already.
    return {_EALREADY: _EINPROGRESS, _EISCONN: 0}.get(error, error)
