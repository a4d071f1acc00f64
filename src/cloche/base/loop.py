"""A small event loop on epoll, driving native coroutines.

asyncio would do, but costs 47 ms of CPU to import here (its ssl, subprocess and typing imports)
where a whole container start is to take about 150; this costs 1 ms. One thread, no callbacks
from signal handlers: signals arrive as readable bytes through `signal.set_wakeup_fd`.
"""

from __future__ import annotations

import os
import select
from _heapq import heappop, heappush  # heapq itself is Python code that nobody needs
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from typing import Any

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANGUP = select.EPOLLHUP | select.EPOLLERR


class Future:
    """A result that is not there yet; awaited by one or more coroutines."""

    __slots__ = ("_callbacks", "done", "error", "value")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.error: BaseException | None = None
        self._callbacks: list[Callable[[Future], object]] = []

    def set(self, value: object = None) -> None:
        """Complete with *value*; a second completion is ignored."""
        if not self.done:
            self.value = value
            self._complete()

    def fail(self, error: BaseException) -> None:
        """Complete by raising *error* in whoever awaits."""
        if not self.done:
            self.error = error
            self._complete()

    def _complete(self) -> None:
        self.done = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def on_done(self, callback: Callable[[Future], object]) -> None:
        """Call *callback* with this future once it is complete (at once if it is)."""
        if self.done:
            callback(self)
        else:
            self._callbacks.append(callback)

    def result(self) -> Any:  # noqa: ANN401 (whatever was set)
        """The value, or the error raised."""
        if self.error is not None:
            raise self.error
        return self.value

    def __await__(self) -> Generator[Future, None, Any]:
        if not self.done:
            yield self
        return self.result()


class Timer:
    """A callback due at a time; `cancel` makes it never run."""

    __slots__ = ("callback", "due")

    def __init__(self, due: float, callback: Callable[[], object] | None) -> None:
        self.due = due
        self.callback = callback

    def cancel(self) -> None:
        """Never call back; harmless after the timer has run."""
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.due < other.due


class Loop:
    """Watches descriptors and timers, and runs coroutines until told to stop."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], object]] = {}
        self._timers: list[Timer] = []
        self._running = False

    def watch(self, fd: int, events: int, handler: Callable[[int], object]) -> None:
        """Call *handler* with the epoll events of *fd*; a second call changes events and handler.

        A descriptor that epoll cannot watch (a regular file, /dev/null) raises PermissionError:
        it is always ready, and the caller reads or writes it without waiting.
        """
        if fd in self._handlers:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def unwatch(self, fd: int) -> None:
        """Forget *fd*; harmless when it is not watched."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call *callback* once, *seconds* from now."""
        timer = Timer(monotonic() + seconds, callback)
        heappush(self._timers, timer)
        return timer

    def start(self, coroutine: Coroutine[Future, None, Any]) -> Future:
        """Run *coroutine* beside the others; its result arrives in the future returned."""
        outcome = Future()

        def step(_: Future | None = None) -> None:
            try:
                awaited = coroutine.send(None)
            except StopIteration as stop:
                outcome.set(stop.value)
            except Exception as error:
                outcome.fail(error)
            else:
                awaited.on_done(step)

        step()
        return outcome

    def run_until(self, future: Future) -> Any:  # noqa: ANN401 (the future's value)
        """Run until *future* is complete; returns its value or raises its error."""
        while not future.done:
            self.run_once()
        return future.result()

    def run_once(self) -> None:
        """Wait for the next event or timer and handle what is due."""
        timeout = -1.0
        while self._timers and self._timers[0].callback is None:
            heappop(self._timers)
        if self._timers:
            timeout = max(0.0, self._timers[0].due - monotonic())
        for fd, events in self._epoll.poll(timeout):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(events)
        now = monotonic()
        while self._timers and self._timers[0].due <= now:
            timer = heappop(self._timers)
            if timer.callback is not None:
                timer.callback()

    def close(self) -> None:
        """Release the epoll descriptor."""
        self._epoll.close()


def read_some(fd: int, size: int = 65536) -> bytes | None:
    """Read what is there from a non-blocking *fd*; None when nothing is, b"" at the end.

    A terminal whose other side is gone (EIO) and a reset connection count as the end.
    """
    try:
        return os.read(fd, size)
    except BlockingIOError:
        return None
    except OSError:
        return b""
