"""What can be asked of a running sandbox through its control socket, one function each."""

from __future__ import annotations

import os

from cloche.base import fastjson
from cloche.base.errors import ClocheError, GuestError, StateError
from cloche.heart.blame import explained, explained_exec
from cloche.heart.process import SIGKILL
from cloche.heart.pulse import SilentError
from cloche.model.oci import load_process, load_resources
from cloche.model.state import CREATED, PAUSED, RUNNING
from cloche.wire.messages import AgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from cloche.base.loop import Future
    from cloche.heart.connection import Connection
    from cloche.heart.container import Container

    Operation = Callable[["Connection", dict[str, Any], list[int]], Coroutine[Future, None, Any]]

ESRCH = 3


def _container(connection: Connection, request: dict[str, Any]) -> Container:
    return connection.sandbox.find(str(request["id"]))


async def start(connection: Connection, request: dict[str, Any], fds: list[int]) -> None:
    """Run the program of a created container."""
    container = _container(connection, request)
    if container.state.fields["status"] != CREATED:
        raise StateError(f"cannot start a container that is {container.state.fields['status']}")
    await connection.sandbox.adopt_late(container)
    # Before the program runs: where its state cannot be written, it is not to run unseen.
    container.set_status(RUNNING)
    try:
        await connection.sandbox.pulse.ask(
            "start", {"id": container.id}, late=lambda _: container.has_become(CREATED, RUNNING)
        )
    except BaseException as error:
        container.has_become(RUNNING, CREATED)
        if not isinstance(error, AgentError):
            raise
        told = explained(error, container.config)
        raise connection.sandbox.pulse.explained(told) from None


async def kill(connection: Connection, request: dict[str, Any], fds: list[int]) -> list[str]:
    """Signal the container's init, or all of its processes; returns warnings.

    As with kill(2), what cannot be heard now is heard later: that is no error. podman 4.3 takes
    one at its stop signal for the end of the container, and never comes to SIGKILL.
    """
    container = _container(connection, request)
    number, everything = int(request["signal"]), bool(request.get("all"))
    try:
        if number == SIGKILL:
            await container.kill(everything=everything)
        else:
            signalled = container.init.signal(number, everything=everything)
            await connection.sandbox.pulse.guard(signalled)
    except SilentError as error:
        return [f"kill: {error.message}; it hears of signal {number} if it goes on"]
    except AgentError as error:
        if error.errno != ESRCH:
            raise
        raise StateError("container not running") from None
    return []


async def execute(
    connection: Connection, request: dict[str, Any], fds: list[int]
) -> dict[str, Any]:
    """Start another process in the container; its exit is told on the connection later."""
    try:
        connection.sandbox.pulse.require()
        container = _container(connection, request)
        status = container.state.fields["status"]
        if status not in (RUNNING, CREATED) and not (status == PAUSED and request.get("paused")):
            hint = "pass --ignore-paused" if status == PAUSED else ""
            raise StateError(f"cannot exec in a {status} container", hint=hint)
        process = load_process(fastjson.dumps(request["process"]).encode(), "process")
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    exec_id = f"{os.getpid()}-{connection.sandbox.next_number()}"
    guest, plan, warnings = container.new_process(
        exec_id,
        process,
        tuple(fds),
        foreground=bool(request.get("foreground")),
        limits=request.get("limits") or (),
    )
    fields = {"id": container.id, "exec_id": exec_id, "process": plan}
    try:
        # Who asked for a process that starts late is gone: it is not wanted any longer.
        future = connection.sandbox.pulse.ask(
            "exec",
            {**fields, "cgroup": request.get("cgroup")},
            late=lambda _: guest.signal(SIGKILL),
        )
        guest.begin_input()
        reply = await future
    except GuestError as error:
        guest.abandon()
        if not isinstance(error, SilentError):
            container.processes.pop(exec_id, None)
        if isinstance(error, AgentError):
            told = explained_exec(error, process)
            raise connection.sandbox.pulse.explained(told) from None
        raise
    guest.pid = reply["pid"]
    connection.process = guest
    if connection.is_closed:
        guest.signal(SIGKILL)
    return {"pid": guest.pid, "warnings": warnings}


async def pause(connection: Connection, request: dict[str, Any], fds: list[int]) -> None:
    """Freeze all processes of the container."""
    container = _container(connection, request)
    if container.state.fields["status"] not in (RUNNING, CREATED):
        raise StateError(f"container not running: {container.state.fields['status']}")
    await _freeze(container, True)
    container.paused_from = container.state.fields["status"]
    try:
        container.set_status(PAUSED)
    except ClocheError:
        await _freeze(container, False)
        raise


async def resume(connection: Connection, request: dict[str, Any], fds: list[int]) -> None:
    """Let a paused container go on."""
    container = _container(connection, request)
    if container.state.fields["status"] != PAUSED:
        raise StateError("container not paused")
    await _freeze(container, False)
    try:
        container.set_status(container.paused_from)
    except ClocheError:
        await _freeze(container, True)
        raise


async def _freeze(container: Container, frozen: bool) -> None:
    """Freeze or thaw it; what a silent guest does of that later is undone again."""
    pulse, fields = container.sandbox.pulse, {"id": container.id}

    def undo(_: object) -> None:
        container.sandbox.agent.call("freeze", {**fields, "frozen": not frozen})

    await pulse.ask("freeze", {**fields, "frozen": frozen}, late=undo)


async def processes(
    connection: Connection, request: dict[str, Any], fds: list[int]
) -> list[dict[str, Any]]:
    """The container's processes as the guest sees them, and when each has started (s, epoch)."""
    from cloche.heart.listing import processes
    from cloche.host.proc_view import guest_boot

    container = _container(connection, request)
    found = await processes(container)
    boot = guest_boot(*connection.sandbox.greeted())()
    return [{**process, "started": boot + process["start_ns"] / 1e9} for process in found]


async def update(connection: Connection, request: dict[str, Any], fds: list[int]) -> list[str]:
    """Change the container's limits; warnings about what cannot be had."""
    from cloche.heart import resources

    container = _container(connection, request)
    wanted = load_resources(fastjson.dumps(request["resources"]).encode())
    return await resources.update(container, wanted)


async def stats(connection: Connection, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
    """What the container uses in the guest, and what its VM costs the host."""
    from cloche.heart import resources

    return await resources.stats(_container(connection, request))


async def watch(connection: Connection, request: dict[str, Any], fds: list[int]) -> None:
    """Tell on this connection of kills for want of memory, from now on."""
    connection.watched = _container(connection, request).news()
    connection.watched.watchers.add(connection)


async def join(connection: Connection, request: dict[str, Any], fds: list[int]) -> object:
    """Create a further container in this VM (cloche.heart.member)."""
    from cloche.heart import member

    return await member.join(connection, request, fds)


async def ping(connection: Connection, request: dict[str, Any], fds: list[int]) -> None:
    """Say that the supervisor is there, whatever its guest does."""


OPERATIONS: dict[str, Operation] = {
    "ping": ping,
    "start": start,
    "join": join,
    "kill": kill,
    "exec": execute,
    "pause": pause,
    "resume": resume,
    "ps": processes,
    "update": update,
    "stats": stats,
    "watch": watch,
}
