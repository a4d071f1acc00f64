"""Requests, replies and events of the agent (docs/protocol.md) in msgpack; no I/O."""

from __future__ import annotations

import os

from cloche.base.errors import GuestError
from cloche.base.msgpack import pack
from cloche.base.typed import Struct
from cloche.wire import frames
from cloche.wire.answers import AgentFailure, Checks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Data(Struct):
    """Bytes of a process's stream."""

    stream: int
    payload: bytes


class Credit(Struct):
    """The guest has consumed *granted* bytes more of a stream."""

    stream: int
    granted: int


class Eof(Struct):
    """The guest writes no more to a stream."""

    stream: int


class Reply(Struct):
    """The answer to a request: a value, or an error."""

    request: int
    value: Any
    error: AgentFailure | None


class Event(Struct):
    """Something that happened in the guest."""

    name: str
    fields: dict[str, Any]


Received = Data | Credit | Eof | Reply | Event


def _failure_text(failure: AgentFailure) -> str:
    if failure.message:
        return failure.message
    cause = os.strerror(failure.errno).lower() if failure.errno else "failed"
    return f"{failure.step} {failure.object}: {cause}"


class TooLongError(GuestError):
    """A request that does not fit a frame."""


class AgentError(GuestError):
    """A request that the agent refused at *step* on *object*; *errno* is Linux's, 0: none."""

    def __init__(self, failure: AgentFailure) -> None:
        super().__init__(_failure_text(failure))
        self.errno = failure.errno
        self.step = failure.step
        self.object = failure.object


class Protocol:
    """Both directions of one agent connection."""

    def __init__(self) -> None:
        self._decoder = frames.Decoder()
        self._checks = Checks()
        # What has been asked and not been answered yet: each reply is read as one to its request.
        self._asked: dict[int, str] = {}
        self._last = 0

    def request(self, op: str, fields: dict[str, Any]) -> tuple[int, bytes]:
        """A request's number and its frame."""
        payload = pack([self._last + 1, {op: fields}])
        if len(payload) > frames.MAX_REQUEST:
            raise TooLongError(
                f"{op}: request of {len(payload)} bytes is too long for the agent, "
                f"which takes {frames.MAX_REQUEST}"
            )
        (number,) = self.expect(op)
        return number, frames.encode(0, frames.REQUEST, payload)

    def expect(self, *ops: str) -> list[int]:
        """The numbers of the next requests, which were made elsewhere."""
        numbers = range(self._last + 1, self._last + 1 + len(ops))
        self._asked.update(zip(numbers, ops, strict=True))
        self._last += len(ops)
        return list(numbers)

    def receive(self, data: bytes) -> list[Received]:
        """What *data* completes; raises GuestError when the guest breaks the protocol."""
        return [self._received(*frame) for frame in self._decoder.feed(data)]

    def _received(self, stream: int, kind: int, payload: bytes) -> Received:
        if kind == frames.DATA:
            return Data(stream, payload)
        if kind == frames.CREDIT:
            return Credit(stream, int.from_bytes(payload, "little"))
        if kind == frames.EOF:
            return Eof(stream)
        if kind == frames.EVENT:
            return Event(*self._checks.event(payload))
        number, body = self._checks.reply(payload)
        op = self._asked.pop(number, None)
        if op is None:
            raise GuestError(f"agent connection: reply to unknown request {number}")
        return Reply(number, self._checks.value(op, body), body.error)
