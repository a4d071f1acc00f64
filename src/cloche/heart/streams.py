"""Relays between the engine's descriptors and the agent's streams, with credit.

Descriptors are shared with the engine or a shell, so their O_NONBLOCK flag is not ours to set:
a descriptor is opened anew through /proc where that works, sockets take MSG_DONTWAIT, and what
is left is written in pieces that a writable pipe takes without blocking.
"""

from __future__ import annotations

import _socket  # socket proper imports selectors and enum, 5 ms
import os
import stat

from cloche.base.errors import GuestError
from cloche.base.loop import READ, WRITE, Future, Loop
from cloche.wire.frames import CREDIT_STEP, OUTPUT_WINDOW, WINDOW

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ_SIZE = 65536
# pipe(7): poll says writable when PIPE_BUF bytes fit.
SAFE_WRITE = 4096


def is_null(fd: int) -> bool:
    """Whether *fd* is /dev/null."""
    info = os.fstat(fd)
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == os.makedev(1, 3)


def is_same(first: int, second: int) -> bool:
    """Whether two descriptors write to one file, as after the shell's ``2>&1``."""
    one, other = os.fstat(first), os.fstat(second)
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


class Endpoint:
    """A descriptor that can be written without ever blocking the loop."""

    def __init__(self, fd: int, *, close: bool) -> None:
        self.fd = fd
        self._close = close
        self._socket: _socket.socket | None = None
        self._limit = SAFE_WRITE
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):
            self._socket = _socket.socket(fileno=os.dup(fd))
        elif stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            self._reopen()
        else:
            self._limit = 1 << 20  # a regular file never blocks

    def _reopen(self) -> None:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            own = os.open(f"/proc/self/fd/{self.fd}", flags)
        except OSError:
            return
        if self._close:
            os.close(self.fd)
        self.fd = own
        self._close = True
        self._limit = 1 << 20

    def write(self, data: bytearray) -> int:
        """Write what fits now and return how much; 0 when nothing does."""
        try:
            if self._socket is not None:
                return self._socket.send(data, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
            with memoryview(data) as view:
                return os.write(self.fd, view[: self._limit])
        except BlockingIOError:
            return 0

    def close(self) -> None:
        """Close what is ours."""
        if self._socket is not None:
            self._socket.close()
        if self._close:
            os.close(self.fd)


class OutputRelay:
    """Guest to host: bytes are written to a descriptor, credit is granted as they are."""

    stream = 0

    def __init__(
        self,
        loop: Loop,
        fd: int,
        *,
        grant: Callable[[int], None],
        refuse: Callable[[], None] = lambda: None,
        close: bool = True,
    ) -> None:
        """*refuse* tells the guest that nobody reads any more."""
        self._loop = loop
        self._refuse = refuse
        self.reader_gone = False
        self._endpoint = Endpoint(fd, close=close)
        self._grant = grant
        self._buffer = bytearray()
        self._consumed = 0
        self._ending = False
        self._waiting = False
        self._room = OUTPUT_WINDOW
        self.finished = Future()
        self._idle: list[Future] = []

    def feed(self, data: bytes) -> None:
        """Bytes from the guest; GuestError when it sends more than it was granted."""
        self._room -= len(data)
        if self._room < 0:
            raise GuestError(f"agent connection: stream {self.stream} overruns its credit")
        if self.finished.done:
            self._give(len(data))
            return
        self._buffer += data
        if not self._waiting:
            self._flush()

    def end(self) -> None:
        """No more will come: close once everything is written."""
        self._ending = True
        if not self._buffer and not self.finished.done:
            self._finish()

    def drained(self) -> Future:
        """Completes when all bytes received until now have been written."""
        future = Future()
        if self.finished.done or not self._buffer:
            future.set()
        else:
            self._idle.append(future)
        return future

    def _flush(self, _: int = 0) -> None:
        try:
            while self._buffer:
                count = self._endpoint.write(self._buffer)
                if count == 0:
                    break
                del self._buffer[:count]
                self._consumed += count
        except OSError:
            # EPIPE and the like: the reader is gone; what is under way still is dropped.
            self.reader_gone = True
            self._refuse()
            self._consumed += len(self._buffer)
            self._buffer.clear()
            self._ending = True
        if self._consumed >= CREDIT_STEP or (self._consumed and self.reader_gone):
            self._give(self._consumed)
            self._consumed = 0
        self._watch()
        if not self._buffer:
            idle, self._idle = self._idle, []
            for future in idle:
                future.set()
            if self._ending and not self.finished.done:
                self._finish()

    def add(self, text: str) -> None:
        """A line of our own behind what the guest has sent; nowhere once that has ended."""
        if self.finished.done:
            return
        data = text.encode()
        self._consumed -= len(data)  # the guest has not sent them: it gets no credit for them
        self._buffer += data
        if not self._waiting:
            self._flush()

    def _give(self, count: int) -> None:
        self._room = min(self._room + count, OUTPUT_WINDOW)
        self._grant(count)

    def _watch(self) -> None:
        if self._buffer and not self._waiting:
            self._loop.watch(self._endpoint.fd, WRITE, self._flush)
            self._waiting = True
        elif not self._buffer and self._waiting:
            self._loop.unwatch(self._endpoint.fd)
            self._waiting = False

    def _finish(self) -> None:
        if self._waiting:
            self._loop.unwatch(self._endpoint.fd)
            self._waiting = False
        self._endpoint.close()
        self.finished.set()


class InputRelay:
    """Host to guest: read from a descriptor while there is credit."""

    stream = 0

    def __init__(
        self,
        loop: Loop,
        fd: int,
        *,
        send: Callable[[bytes], None],
        send_eof: Callable[[], None],
        has_room: Callable[[], bool] = lambda: True,
        close: bool = True,
    ) -> None:
        """Where there is no room (*has_room*) it stops reading, until it is told to `go_on`."""
        self._loop = loop
        self._fd = fd
        self._send = send
        self._send_eof = send_eof
        self._has_room = has_room
        self._close = close
        self._started = False
        self._credit = WINDOW
        self._watching = False
        self._always_ready = False
        self._is_due = False
        self.finished = Future()

    def start(self) -> None:
        """Begin reading; call once the guest knows the stream."""
        self._started = True
        self.go_on()

    def go_on(self) -> None:
        """Read again, if it has begun: there is room."""
        if self._started and not self.finished.done:
            self._want()

    def grant(self, count: int) -> None:
        """The guest has consumed *count* bytes."""
        self._credit = min(self._credit + count, WINDOW)
        self.go_on()

    def stop(self) -> None:
        """Read no more (the process has ended or closed its input)."""
        if not self.finished.done:
            self._unwatch()
            if self._close:
                os.close(self._fd)
            self.finished.set()

    def _want(self) -> None:
        if not self._may_read():
            self._unwatch()
        elif self._always_ready:
            self._pump_soon()
        elif not self._watching:
            try:
                self._loop.watch(self._fd, READ, self._pump)
                self._watching = True
            except PermissionError:  # a regular file: always ready, epoll refuses it
                self._always_ready = True
                self._pump_soon()

    def _pump_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_later(0, self._pump)

    def _may_read(self) -> bool:
        return self._credit > 0 and self._has_room()

    def _unwatch(self) -> None:
        if self._watching:
            self._loop.unwatch(self._fd)
            self._watching = False

    def _pump(self, _: int = 0) -> None:
        self._is_due = False
        if self.finished.done or not self._may_read():
            return
        try:
            data = os.read(self._fd, min(self._credit, READ_SIZE))
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a terminal whose other side is gone reads as EIO
        if not data:
            self._send_eof()
            self.stop()
            return
        self._credit -= len(data)
        self._send(data)
        self._want()
