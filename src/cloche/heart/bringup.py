"""The parent's side of a start: forks the supervisor, runs hooks for it, hears the outcome."""

from __future__ import annotations

import os

from cloche.base import limits
from cloche.base.errors import ClocheError
from cloche.base.quick import suppress
from cloche.heart.cleanup import note_cgroup
from cloche.heart.launch import (
    Channel,
    Request,
    fork_supervisor,
    make_directory,
)
from cloche.heart.supervisor import supervise
from cloche.host import cgroup
from cloche.model.state import OCI_VERSION
from cloche.vmm.integrity import Image
from cloche.vmm.shape import host_limit

UNBOUNDED = "host: no usable memory controller: only the VM's size limits it"
SIGINT = 2  # signal proper imports enum, 5 ms
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Created:
    """A container that waits for `start`."""

    def __init__(
        self, pid: int, warnings: list[str], timings: list[tuple[str, int]], debug: list[str]
    ) -> None:
        self.pid = pid
        self.warnings = warnings
        self.timings = timings
        self.debug = debug


def bring_up(request: Request, meanwhile: Callable[[], object] = lambda: None) -> Created:
    """Create the container of *request*; on any failure nothing is left of it.

    In a VM of its own, or in that of the containers whose namespaces it joins. *meanwhile* is
    called once its supervisor is at work, for what else is to be prepared.
    """
    cgroup.relative_path(request.glance.cgroups_path, request.id)  # what it can be no name of
    run: Callable[[Request, int], int] = supervise
    if request.glance.joins:
        from cloche.heart.pod import stand_in_for

        run = stand_in_for(request) or supervise
    needs = limits.start_needs(request.memory_mib() if run is supervise else 0)
    request.raised = limits.require(request.limits, needs)
    make_directory(request)
    pid, fd = fork_supervisor(request, run)
    channel = Channel(fd)
    try:
        meanwhile()
        return _follow(request, pid, channel)
    except BaseException:
        channel.close()  # the supervisor gives up when it sees that
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
        from cloche.heart.cleanup import clear

        clear(request.root, request.id, request.glance.cgroups_path)
        _run_poststop(request, pid)
        raise


def _follow(request: Request, pid: int, channel: Channel) -> Created:
    warnings: list[str] = []
    while True:
        message = channel.receive()
        if message is None:
            raise ClocheError(
                f"container {request.id}: its supervisor ended before the container was created",
                hint="was it killed? dmesg may tell",
            )
        event = message["event"]
        if event == "namespaces":
            pids = [pid, message["vm_pid"]] if message["vm_pid"] else [pid]
            if not _join_cgroup(request, pids) and message["vm_pid"]:
                warnings.append(UNBOUNDED)
            _run_host_hooks(request, pid)
            channel.send({"event": "hooks done"})
        elif event == "relaunched":
            _join_cgroup(request, [message["vm_pid"]])
            channel.send({"event": "joined"})
        elif event == "error":
            raise ClocheError(message["message"], hint=message["hint"])
        elif event == "listening":
            request.is_listening = True
        else:
            channel.close()
            _look_after(message.get("image"))
            if request.interrupted and not message["interrupted"]:
                request.early_signals.append(SIGINT)  # sent to us alone, not by a terminal
            warnings += message["warnings"]
            return Created(pid, warnings, message["timings"], message["debug"])


def _look_after(origin: list[str] | None) -> None:
    """Have what the VM came from read, where that was not done since the host was booted."""
    if origin and not (image := Image(origin[0], origin[1:])).is_known():
        from cloche.heart.verifier import begin

        begin(image)


def _join_cgroup(request: Request, pids: list[int]) -> bool:
    """Move supervisor and QEMU to where the engine expects the container; whether that bounds."""
    path = cgroup.relative_path(request.glance.cgroups_path, request.id)
    if file := cgroup.frozen_by(path):
        raise ClocheError(
            f"$.linux.cgroupsPath: {path}: the cgroup is frozen ({file}): nothing in it could run",
            hint="let it go on, or name another one",
        )
    note_cgroup(request.directory, path)
    return cgroup.join(path, host_limit(request.memory_mib()), pids)


def _run_host_hooks(request: Request, pid: int) -> None:
    if not request.glance.hooks:
        return
    from cloche.heart.hooks import Place, run_hooks, sound_hooks

    hooks = sound_hooks(request.glance.hooks)
    state = hook_state(request, pid)
    request.hooks_ran = True
    run_hooks(hooks, "prestart", state)
    run_hooks(hooks, "createRuntime", state)
    glance = request.glance
    folder = os.path.join(request.bundle, glance.root_path)
    run_hooks(hooks, "createContainer", state, Place(folder, pid, glance.env))


def _run_poststop(request: Request, pid: int) -> None:
    """What the other hooks have set up is taken down again, whatever the creation failed of."""
    if not request.hooks_ran:
        return
    from cloche.heart.hooks import run_all_hooks, sound_hooks

    state = {**hook_state(request, pid), "status": "stopped", "pid": 0}
    # What they say is not told: the failure of the creation is, in one line.
    run_all_hooks(sound_hooks(request.glance.hooks), "poststop", state)


def hook_state(request: Request, pid: int) -> dict[str, Any]:
    """The state that hooks read before the container is created."""
    return {
        "ociVersion": OCI_VERSION,
        "id": request.id,
        "status": "creating",
        "pid": pid,
        "bundle": request.bundle,
        "annotations": request.glance.annotations,
    }
