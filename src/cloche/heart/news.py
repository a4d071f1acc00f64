"""Out-of-memory news for the clients that watch a container."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.base.loop import Loop
    from cloche.heart.connection import Connection

# The guest is not trusted: whatever it says, its watchers hear no more often than this.
INTERVAL_S = 0.05


class OomNews:
    """Tells watchers of kills for want of memory: at once, and what follows at intervals."""

    def __init__(self, loop: Loop) -> None:
        self.watchers: set[Connection] = set()
        self._loop = loop
        self._next = 0.0
        self._waiting = False

    def tell(self) -> None:
        """There was a kill."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + INTERVAL_S
            for watcher in list(self.watchers):
                watcher.notify({"event": "oom"})
        elif not self._waiting:
            self._waiting = True
            self._loop.call_later(self._next - now, self._tell_now)

    def end(self) -> None:
        """The container has ended: its watchers hear no more."""
        for watcher in list(self.watchers):
            watcher.close()

    def _tell_now(self) -> None:
        self._waiting = False
        self.tell()
