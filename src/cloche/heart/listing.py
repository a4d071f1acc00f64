"""The processes of a container as its guest tells them: checked, and fit to be shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from cloche.base.errors import GuestError
from cloche.base.text import printable

if TYPE_CHECKING:
    from cloche.heart.container import Container

_Pid = Annotated[int, Meta(ge=-1, lt=1 << 31)]
_Id = Annotated[int, Meta(ge=0, lt=1 << 32)]
# More than any clock or memory has; msgspec compares with what fits 64 bits only.
_Count = Annotated[int, Meta(ge=0, le=1 << 62)]


class Stat(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What the guest's kernel has in /proc/PID/stat, of which only some is told."""

    state: Annotated[str, Meta(pattern="^[A-Za-z]$")]
    pgrp: _Pid
    session: _Pid
    tty: Annotated[int, Meta(ge=-(1 << 31), lt=1 << 31)]
    tpgid: _Pid
    nice: Annotated[int, Meta(ge=-20, le=19)]
    threads: _Count
    vsize: _Count
    rss: _Count


class Listed(msgspec.Struct):
    """One process (docs/protocol.md, `processes`)."""

    pid: _Pid
    ppid: _Pid
    uid: _Id
    gid: _Id
    nspid: _Pid
    start_ns: _Count
    cpu_ns: _Count
    stat: Stat
    command: str


async def processes(container: Container) -> list[dict[str, Any]]:
    """What runs in *container*, as of `checked`."""
    return checked(await container.sandbox.pulse.ask("processes", {"id": container.id}))


def checked(answer: object) -> list[dict[str, Any]]:
    """An agent's *answer* as plain values; GuestError for one that cannot be.

    A process may call itself anything: what is no text to be shown is escaped here, for all that
    show it.
    """
    try:
        found = msgspec.convert(answer, list[Listed])
    except msgspec.ValidationError as error:
        raise GuestError(f"agent: processes: {error}") from None
    return [_plain(process) for process in found]


def _plain(process: Listed) -> dict[str, Any]:
    stat = {name: getattr(process.stat, name) for name in Stat.__struct_fields__}
    plain: dict[str, Any] = {**msgspec.to_builtins(process), "command": printable(process.command)}
    del plain["stat"]
    return plain | stat
