"""The supervisor's end of the agent connection: requests awaited, streams relayed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from cloche.base.errors import BootError, ClocheError, GuestError
from cloche.base.loop import Future
from cloche.heart.greeting import hello
from cloche.heart.streams import InputRelay, OutputRelay
from cloche.wire import frames
from cloche.wire.frames import PROTOCOL_VERSION
from cloche.wire.messages import (
    AgentError,
    Credit,
    Data,
    Eof,
    Event,
    Protocol,
    Received,
    Reply,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.heart.greeting import Greeting
    from cloche.vmm.vm import Vm

# Bytes queued for the guest beyond which inputs are no longer read.
BACKLOG_LIMIT = 1 << 20


class Agent:
    """One agent: `call` for requests, `input`/`output` for the streams of processes."""

    def __init__(self, vm: Vm, on_event: Callable[[Event], None]) -> None:
        self._vm = vm
        self._on_event = on_event
        self._protocol = Protocol()
        self._pending: dict[int, Future] = {}
        self._outputs: dict[int, OutputRelay] = {}
        self._inputs: dict[int, InputRelay] = {}
        self._last_stream = 0
        self.broken: ClocheError | None = None
        vm.on_agent = self._on_data
        vm.exited.on_done(lambda _: self._vm_ended())

    def call(self, op: str, fields: dict[str, Any] | None = None) -> Future:
        """Send a request; the future holds its value, or AgentError."""
        future = Future()
        if self.broken is not None:
            future.fail(self.broken)
            return future
        number, frame = self._protocol.request(op, fields or {})
        self._pending[number] = future
        self._vm.send(frame)
        return future

    def hello(self) -> Future:
        """The handshake; must be the first request."""
        nonce = os.urandom(16)
        return self._checked(self.call("hello", hello(nonce)), nonce)

    def expect(self, greeting: Greeting) -> list[Future]:
        """The answers to *greeting*, which was sent before there was this object."""
        futures = []
        for number in self._protocol.skip(len(greeting.requests)):
            futures.append(future := Future())
            if self.broken is not None:
                future.fail(self.broken)
            else:
                self._pending[number] = future
        return [self._checked(futures[0], greeting.nonce), *futures[1:]]

    @staticmethod
    def _checked(answer: Future, nonce: bytes) -> Future:
        """The *answer* to a handshake, or what is wrong with it."""
        checked = Future()

        def check(done: Future) -> None:
            if done.error is not None:
                checked.fail(done.error)
            elif done.value.get("nonce") != nonce:
                checked.fail(GuestError("agent handshake: the nonce came back changed"))
            elif done.value.get("version") != PROTOCOL_VERSION:
                checked.fail(
                    GuestError(
                        f"agent handshake: it speaks version {done.value.get('version')}, "
                        f"not {PROTOCOL_VERSION}",
                        hint="run `cloche setup`",
                    )
                )
            else:
                checked.set(done.value)

        answer.on_done(check)
        return checked

    def output(self, fd: int, *, terminal: bool = False, close: bool = True) -> OutputRelay:
        """Relay a new guest stream to *fd*.

        Once nobody reads *fd* any more the process gets SIGPIPE, as on a pipe; with a *terminal*
        its output is dropped, and the hang-up of the terminal is told by a signal.
        """
        self._last_stream += 1
        stream = self._last_stream
        relay = OutputRelay(
            self._vm.loop,
            fd,
            grant=lambda count: self._vm.send(frames.encode_credit(stream, count)),
            refuse=lambda: None if terminal else self._vm.send(frames.encode(stream, frames.EOF)),
            close=close,
        )
        relay.stream = stream
        self._outputs[stream] = relay

        def finished(_: Future) -> None:
            if not relay.reader_gone:
                del self._outputs[stream]

        relay.finished.on_done(finished)
        return relay

    def input(self, fd: int, *, close: bool = True) -> InputRelay:
        """Relay *fd* to a new guest stream."""
        self._last_stream += 1
        stream = self._last_stream
        relay = InputRelay(
            self._vm.loop,
            fd,
            send=lambda data: self._vm.send(frames.encode(stream, frames.DATA, data)),
            send_eof=lambda: self._vm.send(frames.encode(stream, frames.EOF)),
            close=close,
        )
        relay.stream = stream
        relay.finished.on_done(lambda _: self._inputs.pop(stream, None))
        self._inputs[stream] = relay
        return relay

    def _on_data(self, data: bytes) -> None:
        try:
            for received in self._protocol.receive(data):
                self._dispatch(received)
        except GuestError as error:
            self._give_up(error)
        except (KeyError, TypeError, ValueError) as error:
            self._give_up(GuestError(f"agent connection: malformed message: {error!r}"))

    def _give_up(self, error: GuestError) -> None:
        """A guest that breaks the protocol is not spoken with any longer."""
        self._fail(error)
        self._vm.kill()

    def _dispatch(self, received: Received) -> None:
        if isinstance(received, Data):
            output = self._outputs.get(received.stream)
            if output is not None:
                output.feed(received.payload)
        elif isinstance(received, Credit):
            source = self._inputs.get(received.stream)
            if source is not None:
                source.grant(received.granted)
        elif isinstance(received, Eof):
            self._on_eof(received.stream)
        elif isinstance(received, Reply):
            self._on_reply(received)
        else:
            self._on_event(received)

    def _on_eof(self, stream: int) -> None:
        if output := self._outputs.get(stream):
            output.end()
            if output.reader_gone:
                del self._outputs[stream]
        elif stream in self._inputs:
            self._inputs[stream].stop()  # the process closed its input

    def _on_reply(self, reply: Reply) -> None:
        future = self._pending.pop(reply.request, None)
        if future is None:
            raise GuestError(f"agent connection: reply to unknown request {reply.request}")
        if reply.error is not None:
            future.fail(AgentError(reply.error))
        else:
            future.set(reply.value)

    def _vm_ended(self) -> None:
        # The full story costs a read of QEMU's log: only where somebody waits for an answer.
        untold = BootError("VM: has ended")
        self._fail(self._vm.failure("the VM has ended") if self._pending else untold)

    def _fail(self, error: ClocheError) -> None:
        if self.broken is None:
            self.broken = error
        pending, self._pending = self._pending, {}
        for future in pending.values():
            future.fail(error)
        for source in list(self._inputs.values()):
            source.stop()
