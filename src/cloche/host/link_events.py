"""Hearing of changes to the interfaces and routes of the current network namespace."""

from __future__ import annotations

import _socket as socket  # socket proper imports selectors and enum, 5 ms
from time import monotonic

from cloche.base.loop import READ
from cloche.base.quick import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.base.loop import Loop, Timer

# <linux/rtnetlink.h>: links, and routes of IPv4, which addresses come with. Not those of IPv6: the
# kernel changes them by itself a while after each start.
_RTMGRP_LINK, _RTMGRP_IPV4_ROUTE = 0x1, 0x40
# An engine changes one thing after the other; but whoever goes on for ever is not waited for.
SETTLED_S, LATEST_S = 0.1, 1.0
# So many looks in a row that found nothing, and no more than one in that time follows: what we
# ourselves do causes events, and the guest may be able to.
IN_VAIN, IDLE_S = 3, 1.0


class LinkEvents:
    """Calls *changed* once nothing has changed any more for a moment; that tells if it found any.

    OSError where there is no rtnetlink.
    """

    def __init__(self, loop: Loop, changed: Callable[[], bool]) -> None:
        self._loop = loop
        self._changed = changed
        self._timer: Timer | None = None
        self._first = 0.0
        self._in_vain = 0
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._socket.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_ROUTE))
        loop.watch(self._socket.fileno(), READ, self._on_readable)

    def _on_readable(self, _: int) -> None:
        # What is said does not matter, nor that some of it was lost (ENOBUFS).
        with suppress(OSError):
            while self._socket.recv(1 << 16):
                pass
        now = monotonic()
        if self._timer is None:
            self._first = now
        elif now - self._first > LATEST_S:
            return
        else:
            self._timer.cancel()
        pause = SETTLED_S if self._in_vain < IN_VAIN else IDLE_S
        self._timer = self._loop.call_later(pause, self._look)

    def _look(self) -> None:
        self._timer = None
        self._in_vain = 0 if self._changed() else self._in_vain + 1
