"""Requests, replies and events of the agent (docs/protocol.md) in msgpack; no I/O."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import msgspec

from cloche.base.errors import GuestError
from cloche.wire import frames


class Data(NamedTuple):
    """Bytes of a process's stream."""

    stream: int
    payload: bytes


class Credit(NamedTuple):
    """The guest has consumed *granted* bytes more of a stream."""

    stream: int
    granted: int


class Eof(NamedTuple):
    """The guest writes no more to a stream."""

    stream: int


class Reply(NamedTuple):
    """The answer to a request: a value, or an error."""

    request: int
    value: Any
    error: AgentFailure | None


class Event(NamedTuple):
    """Something that happened in the guest."""

    name: str
    fields: dict[str, Any]


class AgentFailure(msgspec.Struct, frozen=True):
    """Why the agent could not carry out a request."""

    step: str
    object: str
    errno: int
    message: str


Received = Data | Credit | Eof | Reply | Event

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


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
        self._last = 0

    def request(self, op: str, fields: dict[str, Any]) -> tuple[int, bytes]:
        """A request's number and its frame."""
        self._last += 1
        payload = _encode([self._last, {op: fields}])
        if len(payload) > frames.MAX_REQUEST:
            raise TooLongError(
                f"{op}: request of {len(payload)} bytes is too long for the agent, "
                f"which takes {frames.MAX_REQUEST}"
            )
        return self._last, frames.encode(0, frames.REQUEST, payload)

    def skip(self, count: int) -> list[int]:
        """The numbers of *count* first requests, which were made elsewhere."""
        self._last = count
        return list(range(1, count + 1))

    def receive(self, data: bytes) -> list[Received]:
        """What *data* completes; raises GuestError when the guest breaks the protocol."""
        return [_received(*frame) for frame in self._decoder.feed(data)]


# What taking a value of an unexpected type apart raises.
_ODD = (ValueError, TypeError, KeyError, AttributeError)


def _received(stream: int, kind: int, payload: bytes) -> Received:
    if kind == frames.DATA:
        return Data(stream, payload)
    if kind == frames.CREDIT:
        return Credit(stream, int.from_bytes(payload[:4], "little"))
    if kind == frames.EOF:
        return Eof(stream)
    try:
        message = _decode(payload)
        if kind == frames.REPLY:
            request, body = message
            if "err" in body:
                failure = msgspec.convert(body["err"], AgentFailure)
                return Reply(int(request), None, failure)
            return Reply(int(request), body["ok"], None)
        ((name, fields),) = message.items()
        return Event(str(name), dict(fields))
    except (msgspec.MsgspecError, RecursionError, *_ODD) as error:
        raise GuestError(f"agent connection: malformed message: {error}") from None
