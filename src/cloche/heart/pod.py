"""A further container in the VM of another one (docs/pods.md): its creator's side.

config.json says it by paths: a namespace of ipc, network, pid or uts whose path is
/proc/<pid>/ns/<kind>, where the process stands for a container of cloche's. What is created then is
a process that stands for the new one, with its own pid, cgroup and view; the supervisor of the
first container does the rest in the guest.
"""

from __future__ import annotations

import os

from cloche.base import syscalls
from cloche.base.errors import ClocheError, ConfigError
from cloche.base.loop import READ, Future, Loop
from cloche.base.quick import suppress
from cloche.base.typed import plain
from cloche.heart.client import Client, ask
from cloche.heart.launch import Channel
from cloche.host.share import Share
from cloche.model.state import State, list_states

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from cloche.heart.launch import Request
    from cloche.model.oci import Config
    from cloche.model.plan_mounts import Sources

SIGWINCH = 28
# Beside root and stdio: one message takes 250 descriptors (control.MAX_FDS).
MOST_BINDS = 246


def stand_in_for(request: Request) -> Callable[[Request, int], int] | None:
    """What the process that stands for the container of *request* has to run.

    None when the only namespace it joins is a network that is no container's of ours. ConfigError
    when what it joins is not in one VM, or in none.
    """
    by_pid = {state.pid: state for state in list_states(request.root, lambda _: None)}
    joins: dict[str, str] = {}
    sandboxes = set()
    for kind, pid in request.glance.joins.items():
        state = by_pid.get(pid) if pid else None
        if state is not None:
            joins[kind] = state.id
            sandboxes.add(str(state.fields.get("sandbox") or state.id))
        elif kind != "network":
            raise ConfigError(
                f"$.linux.namespaces: {kind}: process {pid} is no container of {request.root}",
                hint="a VM cannot enter namespaces of the host, or of another runtime's containers",
            )
    if not sandboxes:
        return None
    if len(sandboxes) > 1:
        names = " and ".join(sorted(sandboxes))
        raise ConfigError(f"$.linux.namespaces: containers {names} are in different VMs")
    owner = by_id(by_pid.values(), sandboxes.pop())
    _check_network(request, owner)
    return lambda member, fd: _stand_in(member, owner, joins, fd)


def by_id(states: Iterable[State], name: str) -> State:
    """The state of the container *name*, which lives; ConfigError when it does not."""
    for state in states:
        if state.id == name and state.pid:
            return state
    raise ConfigError(f"$.linux.namespaces: the VM of container {name} has ended")


def _check_network(request: Request, owner: State) -> None:
    """The VM has one network; a container in it cannot have another one."""
    network, own = request.glance.network, f"/proc/{owner.pid}/ns/net"
    with suppress(OSError):
        named, has = os.stat(network), os.stat(own)
        if (named.st_dev, named.st_ino) == (has.st_dev, has.st_ino):
            return
    if request.glance.network != "host":
        raise ConfigError(
            f"$.linux.namespaces: network: it cannot be another one than that of the VM, which "
            f"is container {owner.id}'s",
            hint="join its network too",
        )


def _stand_in(request: Request, owner: State, joins: dict[str, str], channel_fd: int) -> int:
    """Create the container in the VM of *owner*, then stand for it; its exit code."""
    channel = Channel(channel_fd)
    try:
        _enter(request, owner)
        channel.send({"event": "namespaces", "vm_pid": 0})
        config, sources = _sources(request)
        answered = channel.receive()
        if answered is None:
            return 1
        from cloche.heart.stdio import stdio_of

        fds = stdio_of(request, config)
        trees = _trees(request, config, sources)
        client, answer = _join(request, joins, sources, [*fds, *trees])
        for fd in (*fds, *trees):
            os.close(fd)
        loop = Loop()
        _listen(loop, client)
        channel.send({"event": "listening"})
        if request.at_once:
            ask(State(request.root, request.id, {}), "start")
        _show(loop, request, config, answer)
        os.chdir("/")  # the caller's file system need not stay mounted for us
        channel.send(
            {
                "event": "created",
                "warnings": answer["warnings"],
                "timings": request.timings.marks,
                "interrupted": False,
                "debug": [],
            }
        )
    except (ClocheError, OSError) as error:
        hint = error.hint if isinstance(error, ClocheError) else ""
        channel.send({"event": "error", "message": str(error), "hint": hint})
        return 1
    return _until_exit(loop, client)


def _enter(request: Request, owner: State) -> None:
    syscalls.prctl_name("cloche")
    if not request.foreground:
        os.setsid()
    with open(f"/proc/{owner.pid}/ns/net", "rb") as network:
        syscalls.setns(network.fileno(), syscalls.CLONE_NEWNET)
    # The folder's socket is that of the supervisor: other verbs need not know.
    os.symlink(f"../{owner.id}/control.sock", os.path.join(request.directory, "control.sock"))


def _sources(request: Request) -> tuple[Config, Sources]:
    from cloche.model.oci import load_config
    from cloche.model.plan import host_sources

    config = load_config(request.glance.path)
    return config, host_sources(config, request.bundle)


def _trees(request: Request, config: Config, sources: Sources) -> list[int]:
    """Root and binds as mounts that can be handed over.

    They are made in a share of our own, which the host does not see, and which ends with us.
    """
    if len(sources.binds) > MOST_BINDS:
        raise ConfigError(
            f"$.mounts: {len(sources.binds)} folders or files of the host are more than the "
            f"{MOST_BINDS} that can be handed over to the VM of another container",
            hint="one bind of a folder above them takes the place of many",
        )
    from cloche.heart.container import rootfs_of

    share = Share(os.path.join(request.directory, "share"))
    share.enter()
    share.bind(rootfs_of(request, config), "root")
    for bind in sources.binds:
        share.add(bind, str(bind.index))
    names = ["root", *(str(bind.index) for bind in sources.binds)]
    paths = [os.path.join(share.directory, name) for name in names]
    return [syscalls.open_tree(path, recursive=True) for path in paths]


def _join(
    request: Request, joins: dict[str, str], sources: Sources, fds: list[int]
) -> tuple[Client, dict[str, Any]]:
    client = Client(State(request.root, request.id, {}))
    answer: dict[str, Any] = client.request(
        "join",
        fds,
        pid=os.getpid(),
        joins=joins,
        bundle=request.bundle,
        console_socket=request.console_socket,
        foreground=request.foreground,
        limits=request.limits,
        sources=plain(sources),
    )
    return client, answer


def _listen(loop: Loop, client: Client) -> None:
    """Hand signals on from now on, window sizes too."""
    from cloche.heart.signals import watch_signals

    def arrived(number: int) -> None:
        with suppress(OSError):
            if number == SIGWINCH:
                client.tell("resize")
            else:
                client.tell("signal", signal=number)

    watch_signals(loop, arrived)


def _show(loop: Loop, request: Request, config: Config, answer: dict[str, Any]) -> None:
    """The container's files and processes, for those who enter our mount namespace."""
    from cloche.heart.container import rootfs_of
    from cloche.heart.view import furnish
    from cloche.host.proc_view import ProcView, guest_boot
    from cloche.host.view import View

    view = View(rootfs_of(request, config), os.path.join(request.directory, "view"))

    def processes() -> Future:
        return _ask_later(loop, request, "ps")

    boot = guest_boot(int(answer["boot_ns"]), int(answer["at_ms"]) / 1000)
    folder = os.path.join(request.directory, "share")
    furnish(view, config, folder, lambda folder: ProcView(loop, folder, processes, boot))


def _ask_later(loop: Loop, request: Request, op: str) -> Future:
    """As client.ask, while the loop goes on: a guest need not answer."""
    told = Future()
    try:
        client = Client(State(request.root, request.id, {}))
        client.tell(op, id=request.id)
    except (ClocheError, OSError) as error:
        told.fail(error)
        return told

    def answered(_: int) -> None:
        loop.unwatch(client.fileno())
        answer = client.receive() or {}
        told.set(answer.get("ok", []))

    loop.watch(client.fileno(), READ, answered)
    return told


def _until_exit(loop: Loop, client: Client) -> int:
    from cloche.heart.process import STATUS_VM_DIED

    over = Future()

    def told(_: int) -> None:
        message = client.receive()
        over.set(STATUS_VM_DIED if message is None else int(message["exit"]))

    if client.has_message():
        told(0)
    else:
        loop.watch(client.fileno(), READ, told)
    code: int = loop.run_until(over)
    return code
