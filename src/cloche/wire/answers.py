"""What the guest may say, field by field, and within which bounds: the one place that checks it.

The guest is not trusted. What is here is taken apart by nobody else: a number that passes can be
counted with, packed into a C integer and compared with the host's own.
"""

from __future__ import annotations

from cloche.base.errors import GuestError
from cloche.base.kinds import Bytes, Each, Int, Items, Misfit, Record, Text, taker
from cloche.base.msgpack import unpack
from cloche.base.typed import Struct
from cloche.model.texts import json_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cloche.base.kinds import Take

    Errno = int
else:
    Errno = Int(0, 4095)  # MAX_ERRNO

_COUNT = Int(0, 1 << 62)  # ns, or how often
_PID = Int(0, 1 << 22)  # PID_MAX_LIMIT; 0: outside of the namespace
_NEW_PID = Int(1, 1 << 22)
_ID = Int(0, (1 << 32) - 1)  # uid_t


class AgentFailure(Struct):
    """Why the agent could not carry out a request."""

    step: str
    object: str
    errno: Errno
    message: str


class _Letter(Text):
    """One letter of ASCII."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def take(self, value: object) -> str:
        """As Kind.take."""
        text: str = super().take(value)
        if not (text.isascii() and text.isalpha()):
            raise Misfit("expected a letter")
        return text


_HELLO = Record(version=Int(0, 0xFFFF), nonce=Bytes(16, 16), agent=str, kernel=str, boot_ns=_COUNT)
_STARTED = Record(pid=_NEW_PID)
_GROUP = Int(-1, 1 << 22)  # -1: there is none
# What the guest's kernel has in /proc/PID/stat, in this order (proc(5)).
STAT = {
    "state": _Letter(),
    "pgrp": _GROUP,
    "session": _GROUP,
    "tty": Int(-(1 << 31), (1 << 31) - 1),
    "tpgid": _GROUP,
    "nice": Int(-20, 19),
    "threads": _COUNT,
    "vsize": _COUNT,
    "rss": _COUNT,
}
_PROCESS = Record(
    pid=_PID,
    ppid=_PID,
    uid=_ID,
    gid=_ID,
    nspid=_PID,
    start_ns=_COUNT,
    cpu_ns=_COUNT,
    stat=Each(*STAT.values()),
    command=str,
)
# The `ok` of a reply, by the request's name; that of all others is nil.
_VALUES: dict[str, object] = {
    "hello": _HELLO,
    "create": _STARTED,
    "exec": _STARTED,
    "processes": Items(_PROCESS, make=list),
    "cgroup_read": dict[str, str | None],
}
_EVENTS: dict[str, object] = {
    "exit": Record(id=str, exec_id=str | None, status=Int(0, 0xFFFF)),  # waitpid(2)
    "oom": Record(id=str, count=_COUNT),
    "dns_query": Record(query=_COUNT, server=Text(most=64), tcp=bool, data=Bytes(most=16384)),
    "module": Record(query=_COUNT, name=str, loaded=list[str]),
    "log": Record(level=str, message=str),
}

# Either of the two, and nothing else, is what a reply has beside its number.
_REPLY = taker(Each(int, dict[str, object | None]))
_EVENT = taker(dict[str, object | None])
_ERROR = AgentFailure.take


class Body:
    """What a reply has beside its number: what it returns, or an *error*."""

    def __init__(self, value: object, error: AgentFailure | None) -> None:
        self.value = value
        self.error = error


class Checks:
    """Checks of what the guest says, each made when it is first needed."""

    def __init__(self) -> None:
        self._takes: dict[str, Take] = {}

    def reply(self, payload: bytes) -> tuple[int, Body]:
        """A reply's number and body, its value still to be checked; GuestError for what is none."""
        number, body = _checked("reply", _REPLY, _unpacked("reply", payload))
        if [*body] == ["err"]:
            return number, Body(None, _checked("reply", _ERROR, body["err"], 1, "err"))
        if [*body] != ["ok"]:
            raise _malformed("reply: not one of ok, err")
        return number, Body(body["ok"], None)

    def value(self, op: str, body: Body) -> Any:  # noqa: ANN401 (whatever *op* returns)
        """What the *body* of a reply to *op* returns, None with an error; GuestError if no such."""
        if body.error is not None:
            return None
        if op in _VALUES:
            return _checked(f"reply to {op}", self._take(op, _VALUES[op]), body.value)
        if body.value is not None:
            raise _malformed(f"reply to {op}: expected null")
        return None

    def event(self, payload: bytes) -> tuple[str, dict[str, Any]]:
        """An event's name and fields; GuestError for what is none, or none that is known."""
        found = _checked("event", _EVENT, _unpacked("event", payload))
        if len(found) != 1:
            raise _malformed(f"event of {len(found)} names")
        ((name, fields),) = found.items()
        if name not in _EVENTS:
            raise _malformed(f"event {name[:40]!r}: unknown")
        return name, _checked(f"event {name}", self._take(name, _EVENTS[name]), fields)

    def _take(self, name: str, kind: object) -> Take:
        if name not in self._takes:
            self._takes[name] = taker(kind)
        return self._takes[name]


def _unpacked(what: str, payload: bytes) -> Any:  # noqa: ANN401 (whatever it holds)
    try:
        return unpack(payload)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"{what}: {error}") from None


def _checked(what: str, take: Take, value: object, *above: str | int) -> Any:  # noqa: ANN401
    """What *take* makes of a *value* that stands at the steps *above*."""
    try:
        return take(value)
    except Misfit as misfit:
        at = json_path([*above, *misfit.steps[::-1]])
        raise _malformed(f"{what}: {misfit.why} - at `{at}`") from None


def _malformed(why: str) -> GuestError:
    return GuestError(f"agent connection: malformed message: {why}")
