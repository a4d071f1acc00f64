"""What the guest may say, field by field, and within which bounds: the one place that checks it.

The guest is not trusted. What is here is taken apart by nobody else: a number that passes can be
counted with, packed into a C integer and compared with the host's own.
"""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

import msgspec
from msgspec import Meta

from cloche.base.errors import GuestError

_Count = Annotated[int, Meta(ge=0, le=(1 << 62))]  # ns, or how often
_Pid = Annotated[int, Meta(ge=0, le=1 << 22)]  # PID_MAX_LIMIT; 0: outside of the namespace
_NewPid = Annotated[int, Meta(ge=1, le=1 << 22)]
_Id = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]  # uid_t
_Errno = Annotated[int, Meta(ge=0, le=4095)]  # MAX_ERRNO
_Status = Annotated[int, Meta(ge=0, le=0xFFFF)]  # waitpid(2)
_Nonce = Annotated[bytes, Meta(min_length=16, max_length=16)]


class AgentFailure(msgspec.Struct, frozen=True):
    """Why the agent could not carry out a request."""

    step: str
    object: str
    errno: _Errno
    message: str


class _Hello(TypedDict):
    version: Annotated[int, Meta(ge=0, le=0xFFFF)]
    nonce: _Nonce
    agent: str
    kernel: str
    boot_ns: _Count


class _Started(TypedDict):
    pid: _NewPid


_Group = Annotated[int, Meta(ge=-1, le=1 << 22)]  # -1: there is none
_Terminal = Annotated[int, Meta(ge=-(1 << 31), lt=1 << 31)]
_Nice = Annotated[int, Meta(ge=-20, le=19)]
# state, pgrp, session, tty, tpgid, nice, threads, vsize, rss
_Stat = tuple[str, _Group, _Group, _Terminal, _Group, _Nice, _Count, _Count, _Count]


class _Process(TypedDict):
    pid: _Pid
    ppid: _Pid
    uid: _Id
    gid: _Id
    nspid: _Pid
    start_ns: _Count
    cpu_ns: _Count
    stat: _Stat
    command: str


class _Exit(TypedDict):
    id: str
    exec_id: str | None
    status: _Status


class _Oom(TypedDict):
    id: str
    count: _Count


class _DnsQuery(TypedDict):
    query: _Count
    server: Annotated[str, Meta(max_length=64)]
    tcp: bool
    data: Annotated[bytes, Meta(max_length=16384)]


class _Module(TypedDict):
    query: _Count
    name: str
    loaded: list[str]


class _Log(TypedDict):
    level: str
    message: str


# The `ok` of a reply, by the request's name; that of all others is nil.
_VALUES: dict[str, Any] = {
    "hello": _Hello,
    "create": _Started,
    "exec": _Started,
    "processes": list[_Process],
    "cgroup_read": dict[str, str | None],
}
_EVENTS: dict[str, Any] = {
    "exit": _Exit,
    "oom": _Oom,
    "dns_query": _DnsQuery,
    "module": _Module,
    "log": _Log,
}


class Body(msgspec.Struct, frozen=True):
    """What a reply has beside its number: one of the two."""

    ok: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    err: AgentFailure | msgspec.UnsetType = msgspec.UNSET


class Checks:
    """Decoders of what the guest says, each made when it is first needed."""

    def __init__(self) -> None:
        self._replies = msgspec.msgpack.Decoder(tuple[int, Body])
        self._events = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
        self._decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {}

    def reply(self, payload: bytes) -> tuple[int, Body]:
        """A reply's number and body; GuestError for what is none."""
        return self._checked("reply", self._replies, payload)  # type: ignore[no-any-return]

    def value(self, op: str, body: Body) -> Any:  # noqa: ANN401 (whatever *op* returns)
        """What the *body* of a reply to *op* returns, None with an error; GuestError if no such."""
        if isinstance(body.ok, msgspec.UnsetType) == isinstance(body.err, msgspec.UnsetType):
            why = f"reply to {op}: not one of ok, err"
            raise GuestError(f"agent connection: malformed message: {why}")
        if isinstance(body.ok, msgspec.UnsetType):
            return None
        if bytes(body.ok) == b"\xc0" and op not in _VALUES:
            return None  # nil, as most are
        return self._checked(f"reply to {op}", self._decoder(op, _VALUES.get(op)), body.ok)

    def event(self, payload: bytes) -> tuple[str, dict[str, Any]]:
        """An event's name and fields; GuestError for what is none, or none that is known."""
        found = self._checked("event", self._events, payload)
        if len(found) != 1:
            raise GuestError(f"agent connection: malformed message: event of {len(found)} names")
        ((name, fields),) = found.items()
        if name not in _EVENTS:
            raise GuestError(f"agent connection: malformed message: event {name[:40]!r}: unknown")
        return name, self._checked(f"event {name}", self._decoder(name, _EVENTS[name]), fields)

    def _decoder(self, name: str, kind: object) -> msgspec.msgpack.Decoder[Any]:
        if name not in self._decoders:
            self._decoders[name] = msgspec.msgpack.Decoder(kind)
        return self._decoders[name]

    @staticmethod
    def _checked(
        what: str, decoder: msgspec.msgpack.Decoder[Any], data: bytes | msgspec.Raw
    ) -> Any:  # noqa: ANN401 (what *decoder* makes)
        try:
            return decoder.decode(data)
        except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError) as error:
            why = f"agent connection: malformed message: {what}: {error}"
            raise GuestError(why) from None
