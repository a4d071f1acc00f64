"""The supervisor's end of the agent connection: requests awaited, streams relayed."""

from __future__ import annotations

import os

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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cloche.heart.greeting import Greeting
    from cloche.vmm.vm import Vm

# Bytes queued for the guest beyond which inputs are no longer read, and no credit is granted.
BACKLOG_LIMIT = 1 << 20
# The same for requests: two of the longest. What else is queued never comes near it.
REQUEST_LIMIT = 2 * frames.MAX_REQUEST
# Requests that the guest has taken and not answered, e.g. answers to DNS queries that it sends.
MOST_PENDING = 4096


class Agent:
    """One agent: `call` for requests, `input`/`output` for the streams of processes."""

    def __init__(self, vm: Vm, on_event: Callable[[Event], None]) -> None:
        self._vm = vm
        self._on_event = on_event
        self._protocol = Protocol()
        self._pending: dict[int, Future] = {}
        self._outputs: dict[int, OutputRelay] = {}
        self._inputs: dict[int, InputRelay] = {}
        # Credit that is granted once the guest has taken what is queued, by stream.
        self._owed: dict[int, int] = {}
        self._last_stream = 0
        self.broken: ClocheError | None = None
        # How many replies have come, and whom each request and the last reply interest.
        self.replies = 0
        self.on_asked: Callable[[], object] = lambda: None
        self.on_all_answered: Callable[[], object] = lambda: None
        vm.on_agent = self._on_data
        vm.on_room = self._on_room
        vm.exited.on_done(lambda _: self._vm_ended())

    def call(self, op: str, fields: dict[str, Any] | None = None) -> Future:
        """Send a request; the future holds its value, or AgentError."""
        future = Future()
        if error := self.broken or self._overload(op):
            future.fail(error)
            return future
        number, frame = self._protocol.request(op, fields or {})
        self._pending[number] = future
        self._vm.send(frame)
        self.on_asked()
        return future

    @property
    def is_asked(self) -> bool:
        """Whether a request waits for its answer."""
        return bool(self._pending)

    def _overload(self, op: str) -> GuestError | None:
        """Why no further request is queued: a guest must not have our memory grow."""
        if self._vm.backlog > REQUEST_LIMIT:
            return GuestError(f"{op}: the guest has not taken {self._vm.backlog} bytes sent before")
        if len(self._pending) >= MOST_PENDING:
            return GuestError(f"{op}: the guest has not answered {MOST_PENDING} requests before")
        return None

    def hello(self) -> Future:
        """The handshake; must be the first request."""
        nonce = os.urandom(16)
        return self._checked(self.call("hello", hello(nonce)), nonce)

    def expect(self, greeting: Greeting) -> list[Future]:
        """The answers to *greeting*, which was sent before there was this object."""
        futures = []
        for number in self._protocol.expect(*(op for op, _ in greeting.requests)):
            futures.append(future := Future())
            if self.broken is not None:
                future.fail(self.broken)
            else:
                self._pending[number] = future
        self.on_asked()
        return [self._checked(futures[0], greeting.nonce), *futures[1:]]

    @staticmethod
    def _checked(answer: Future, nonce: bytes) -> Future:
        """The *answer* to a handshake, or what is wrong with it."""
        checked = Future()

        def check(done: Future) -> None:
            if done.error is not None:
                checked.fail(done.error)
            elif done.value["nonce"] != nonce:
                checked.fail(GuestError("agent handshake: the nonce came back changed"))
            elif done.value["version"] != PROTOCOL_VERSION:
                checked.fail(
                    GuestError(
                        f"agent handshake: it speaks version {done.value['version']}, "
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
            grant=lambda count: self._grant(stream, count),
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
            has_room=self._has_room,
            close=close,
        )
        relay.stream = stream
        relay.finished.on_done(lambda _: self._inputs.pop(stream, None))
        self._inputs[stream] = relay
        return relay

    def _has_room(self) -> bool:
        return self._vm.backlog < BACKLOG_LIMIT

    def _grant(self, stream: int, count: int) -> None:
        """Grant credit: later, if the guest takes nothing, and would be granted without end."""
        if self._has_room():
            self._vm.send(frames.encode_credit(stream, count))
        else:
            self._owed[stream] = self._owed.get(stream, 0) + count

    def _on_room(self) -> None:
        """The guest takes again what it is sent."""
        owed, self._owed = self._owed, {}
        for stream, count in owed.items():
            self._grant(stream, count)
        for source in list(self._inputs.values()):
            source.go_on()

    def _on_data(self, data: bytes) -> None:
        if self.broken is not None:
            return
        try:
            for received in self._protocol.receive(data):
                self._dispatch(received)
        except GuestError as error:
            self._give_up(error)
        except Exception as error:  # a bug of ours: what the guest may say has been checked
            self._give_up(GuestError(f"agent connection: internal error: {error!r}"))

    def _give_up(self, error: GuestError) -> None:
        """A guest that breaks the protocol is not spoken with any longer."""
        self._fail(error)
        self._vm.kill(error)

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
        future = self._pending.pop(reply.request)  # what else it might be has been refused
        self.replies += 1
        if not self._pending:
            self.on_all_answered()
        if reply.error is not None:
            future.fail(AgentError(reply.error))
        else:
            future.set(reply.value)

    def _vm_ended(self) -> None:
        # The full story costs a read of QEMU's log: only where somebody waits for an answer.
        told = self._vm.killed_for or BootError("VM: has ended")
        if self._pending and self._vm.killed_for is None:
            told = self._vm.failure("the VM has ended")
        self._fail(told)

    def _fail(self, error: ClocheError) -> None:
        if self.broken is None:
            self.broken = error
        pending, self._pending = self._pending, {}
        for future in pending.values():
            future.fail(error)
        for source in list(self._inputs.values()):
            source.stop()
