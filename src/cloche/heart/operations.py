"""What can be asked of a running sandbox through its control socket, one function each."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from cloche.base.errors import StateError
from cloche.heart.blame import explained, explained_exec
from cloche.model.oci import load_process, load_resources
from cloche.model.state import CREATED, PAUSED, RUNNING
from cloche.wire.messages import AgentError, TooLongError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from cloche.base.loop import Future
    from cloche.heart.container import Container
    from cloche.heart.control import Connection

    Operation = Callable[["Connection", dict[str, Any], list[int]], Coroutine[Future, None, Any]]

ESRCH = 3
SIGKILL = 9


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
        await container.start()
    except BaseException as error:
        if container.state.fields["status"] == RUNNING:
            container.set_status(CREATED)
        if not isinstance(error, AgentError):
            raise
        raise explained(error, container.config) from None


async def kill(connection: Connection, request: dict[str, Any], fds: list[int]) -> None:
    """Signal the container's init, or all of its processes."""
    container = _container(connection, request)
    number = int(request["signal"])
    if number == SIGKILL:
        if container.state.fields["status"] == PAUSED:
            await connection.sandbox.agent.call("freeze", {"id": container.id, "frozen": False})
        if container.id == connection.sandbox.request.id:
            connection.sandbox.kill_soon()
    try:
        await container.init.signal(number, everything=bool(request.get("all")))
    except AgentError as error:
        if error.errno != ESRCH:
            raise
        raise StateError("container not running") from None


async def execute(
    connection: Connection, request: dict[str, Any], fds: list[int]
) -> dict[str, Any]:
    """Start another process in the container; its exit is told on the connection later."""
    try:
        container = _container(connection, request)
        status = container.state.fields["status"]
        if status not in (RUNNING, CREATED) and not (status == PAUSED and request.get("paused")):
            hint = "pass --ignore-paused" if status == PAUSED else ""
            raise StateError(f"cannot exec in a {status} container", hint=hint)
        process = load_process(json.dumps(request["process"]).encode(), "process")
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
        future = connection.sandbox.agent.call("exec", {**fields, "cgroup": request.get("cgroup")})
        guest.begin_input()
        reply = await future
    except (AgentError, TooLongError) as error:
        guest.abandon()
        container.processes.pop(exec_id, None)
        if isinstance(error, AgentError):
            raise explained_exec(error, process) from None
        raise
    guest.pid = int(reply["pid"])
    connection.process = guest
    return {"pid": guest.pid, "warnings": warnings}


async def pause(connection: Connection, request: dict[str, Any], fds: list[int]) -> None:
    """Freeze all processes of the container."""
    container = _container(connection, request)
    if container.state.fields["status"] not in (RUNNING, CREATED):
        raise StateError(f"container not running: {container.state.fields['status']}")
    await connection.sandbox.agent.call("freeze", {"id": container.id, "frozen": True})
    container.paused_from = container.state.fields["status"]
    container.set_status(PAUSED)


async def resume(connection: Connection, request: dict[str, Any], fds: list[int]) -> None:
    """Let a paused container go on."""
    container = _container(connection, request)
    if container.state.fields["status"] != PAUSED:
        raise StateError("container not paused")
    await connection.sandbox.agent.call("freeze", {"id": container.id, "frozen": False})
    container.set_status(container.paused_from)


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
    wanted = load_resources(json.dumps(request["resources"]).encode())
    return await resources.update(container, wanted)


async def stats(connection: Connection, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
    """What the container uses in the guest, and what its VM costs the host."""
    from cloche.heart import resources

    return await resources.stats(_container(connection, request))


async def watch(connection: Connection, request: dict[str, Any], fds: list[int]) -> None:
    """Tell on this connection of kills for want of memory, from now on."""
    connection.watched = _container(connection, request).oom_news
    connection.watched.watchers.add(connection)


async def join(connection: Connection, request: dict[str, Any], fds: list[int]) -> object:
    """Create a further container in this VM (cloche.heart.member)."""
    from cloche.heart import member

    return await member.join(connection, request, fds)


OPERATIONS: dict[str, Operation] = {
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
