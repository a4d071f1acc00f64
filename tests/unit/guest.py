"""The guest's end of a VM: a real `Vm` with its sockets, and a program that sleeps as its QEMU."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from cloche.base.loop import Future, Loop
from cloche.heart.agent import Agent
from cloche.vmm.vm import Vm
from cloche.wire import frames
from cloche.wire.messages import Event


class Guest:
    """What an agent, QEMU's monitor and a console would say is said by the test."""

    def __init__(self, folder: Path) -> None:
        self.loop = Loop()
        self.vm = Vm(self.loop, str(folder))
        self.events: list[Event] = []
        self.agent = Agent(self.vm, self.events.append)
        ends = self.vm.connect()
        self.port, self.monitor, self.console = (
            socket.socket(fileno=os.dup(end.fileno())) for end in ends
        )
        self.vm.pid = os.posix_spawn("/bin/sleep", ["sleep", "1000"], os.environ)
        self.vm.watch(ends)
        self.vm.running.set()

    def say(self, kind: int, message: object, stream: int = 0) -> None:
        """Send a frame; *message* is its payload, or packed into one."""
        payload = message if isinstance(message, bytes) else msgspec.msgpack.encode(message)
        self.port.sendall(frames.encode(stream, kind, payload))

    def turn(self, seconds: float = 0.0) -> None:
        """Let the loop handle what is there, or the first that comes within *seconds*."""
        self.loop.call_later(seconds, lambda: None)
        self.loop.run_once()

    def until(self, future: Future) -> Any:  # noqa: ANN401 (the future's value)
        """Run the loop until *future* is complete."""
        return self.loop.run_until(future)

    def read_all(self) -> bytes:
        """What has been sent to the guest, all of it: the loop runs while it is read."""
        found = b""
        while True:
            self.turn()
            with contextlib.suppress(BlockingIOError):
                while data := self.port.recv(1 << 20, socket.MSG_DONTWAIT):
                    found += data
                    self.turn()
            if not self.vm.backlog and not select.select([self.port], [], [], 0)[0]:
                return found

    def heard(self) -> list[tuple[int, int, bytes]]:
        """The frames that have been sent to the guest: stream, kind, payload."""
        data, found, at = self.read_all(), [], 0
        while at < len(data):
            stream, word = frames.HEADER.unpack_from(data, at)
            at += frames.HEADER.size
            found.append((stream, word & 0xFF, data[at : at + (word >> 8)]))
            at += word >> 8
        return found

    def close(self) -> None:
        """End it all."""
        self.vm.kill()
        self.loop.run_until(self.vm.exited)
        for end in (self.port, self.monitor, self.console):
            end.close()
        self.loop.close()


@contextlib.contextmanager
def new_guest(folder: Path) -> Iterator[Guest]:
    """A guest, until the test is over."""
    guest = Guest(folder)
    yield guest
    guest.close()
