"""Hearing of changes to the interfaces and routes of the current network namespace."""

from __future__ import annotations

import socket

from cloche.base.loop import READ
from cloche.base.quick import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.base.loop import Loop, Timer

# <linux/rtnetlink.h>: links, and routes of IPv4, which addresses come with. Not those of IPv6: the
# kernel changes them by itself a while after each start.
_RTMGRP_LINK, _RTMGRP_IPV4_ROUTE = 0x1, 0x40
# An engine changes one thing after the other.
SETTLED_S = 0.1


class LinkEvents:
    """Calls *changed* once nothing has changed any more for SETTLED_S seconds.

    OSError where there is no rtnetlink.
    """

    def __init__(self, loop: Loop, changed: Callable[[], object]) -> None:
        self._loop = loop
        self._changed = changed
        self._timer: Timer | None = None
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._socket.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_ROUTE))
        loop.watch(self._socket.fileno(), READ, self._on_readable)

    def _on_readable(self, _: int) -> None:
        # What is said does not matter, nor that some of it was lost (ENOBUFS).
        with suppress(OSError):
            while self._socket.recv(1 << 16):
                pass
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(SETTLED_S, self._changed)
