"""`start`, `kill`, `pause`, `resume`, `delete`: one request to the supervisor, or its end.

Imports next to nothing: engines run these several times per container.
"""

from __future__ import annotations

import os
import select

from cloche.base.errors import ClocheError, ConfigError, DamagedError, NotFoundError, StateError
from cloche.base.files import read_text
from cloche.base.quick import suppress
from cloche.cli.flags import BOOL, Flag, Verb
from cloche.heart.cleanup import CGROUP_FILE, clear
from cloche.heart.client import DeafError, EndedError, ask, supervisor_of
from cloche.model.state import CREATED, STOPPED, State, check_id, load_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.cli.log import Log
    from cloche.cli.main import Context

START = Verb("start ID", "Run the program of a created container.")
KILL = Verb(
    "kill [flags] ID [SIGNAL]",
    "Send a signal (default SIGTERM) to the container's init process.",
    (Flag("all a", BOOL, "send it to all processes of the container"),),
)
PAUSE = Verb("pause ID", "Freeze all processes of a container.")
RESUME = Verb("resume ID", "Let the processes of a paused container go on.")
DELETE = Verb(
    "delete [flags] ID",
    "Remove a container that has ended.",
    (Flag("force f", BOOL, "kill it first if it has not"),),
)
# Killing QEMU takes 3-30 ms; a guest of many GiB longer. After the first of these times its cgroup
# is looked at: what is frozen does not end.
THAW_AFTER_MS = 1000
END_TIMEOUT_MS = 10_000
SIGKILL = 9


def start(context: Context, args: list[str]) -> int:
    """`cloche start`."""
    _, container_id = START.one_id(args)
    state = load_state(context.root, container_id)
    _check_alive(state, "start")
    ask(state, "start")
    try:
        run_poststart(state)
    except ClocheError:
        # As runc: a container that is not set up must not run (runtime.md, lifecycle step 9).
        end_supervisor(state)
        raise
    return 0


def run_poststart(state: State) -> None:
    """Run the poststart hooks of a container whose program runs now."""
    if hooks := state.fields.get("hooks"):
        from cloche.heart.hooks import run_hooks

        # As it was when the program began; a short one has ended by now.
        then = {**state.oci(), "status": "running", "pid": int(state.fields["pid"])}
        run_hooks(hooks, "poststart", then)


def _check_alive(state: State, verb: str) -> None:
    if not state.is_alive():
        raise StateError(
            f"cannot {verb} a container that has stopped", hint=f"cloche delete {state.id}"
        )


def kill(context: Context, args: list[str]) -> int:
    """`cloche kill`."""
    flags = KILL.parse(args, stop_at_argument=False)
    if not 1 <= len(flags.arguments) <= 2:
        raise ConfigError("kill: an id and at most one signal are expected", hint=KILL.usage)
    from cloche.model.signals import parse_signal

    container_id, name = (*flags.arguments, "SIGTERM")[:2]
    number = parse_signal(name)
    if number is None:
        raise ConfigError(f"kill: unknown signal {name!r}")
    everything = flags.on("all")
    if everything and not load_state(context.root, container_id).is_alive():
        return 0  # as runc: nothing is left that could be signalled
    state = _running(context.root, container_id)
    try:
        for warning in ask(state, "kill", signal=number, all=everything):
            context.log.warning(warning)
    except EndedError:
        if number != SIGKILL:
            raise
    except DeafError:
        if number != SIGKILL:
            raise
        end_supervisor(state)
    return 0


def _running(root: str, container_id: str) -> State:
    state = load_state(root, container_id)
    if not state.is_alive():
        raise StateError("container not running")
    return state


def pause(context: Context, args: list[str]) -> int:
    """`cloche pause`."""
    _, container_id = PAUSE.one_id(args)
    ask(_running(context.root, container_id), "pause")
    return 0


def resume(context: Context, args: list[str]) -> int:
    """`cloche resume`."""
    _, container_id = RESUME.one_id(args)
    ask(_running(context.root, container_id), "resume")
    return 0


def delete(context: Context, args: list[str]) -> int:
    """`cloche delete`."""
    flags, container_id = DELETE.one_id(args)
    remove(context.root, container_id, force=flags.on("force"), log=context.log)
    return 0


def remove(root: str, container_id: str, *, force: bool, log: Log | None = None) -> None:
    """Remove a container; *force* kills it first and forgives that it does not exist.

    Failures of its poststop hooks are logged to *log*.
    """
    try:
        state = load_state(root, container_id)
    except NotFoundError:
        if not force:
            raise
        clear(root, check_id(container_id), "")
        return
    except DamagedError:
        if not force:
            raise
        supervisor = supervisor_of(root, container_id)
        children = read_text(f"/proc/{supervisor}/task/{supervisor}/children") or ""
        for pid in (supervisor, *map(int, children.split())):
            _kill(pid, read_text(os.path.join(root, container_id, CGROUP_FILE)) or "")
        clear(root, container_id, "")
        return
    status = state.current_status()
    if status not in (STOPPED, CREATED) and not force:
        raise StateError(
            f"cannot delete container {container_id} that is not stopped: {status}",
            hint="cloche kill it first, or delete --force",
        )
    end_supervisor(state)
    clear(root, container_id, "/" + str(state.fields.get("cgroup", "")))
    if log is not None:
        log.debug(f"container {container_id}: was {status}, is removed")
    for problem in _run_poststop(state):
        if log is not None:
            log.warning(problem)


def end_supervisor(state: State) -> None:
    """Kill the supervisor and wait until it and its QEMU are gone."""
    cgroup = str(state.fields.get("cgroup", ""))
    if state.is_alive():
        _kill(int(state.fields["pid"]), cgroup)
    vm_pid = int(state.fields.get("vm_pid", 0))
    with suppress(OSError):
        if _is_qemu(vm_pid, state.directory):
            _await_end(vm_pid, cgroup)


def _kill(pid: int, cgroup: str) -> None:
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, SIGKILL)
        _await_end(pid, cgroup)


def _is_qemu(pid: int, directory: str) -> bool:
    """Whether it is the QEMU of the sandbox in *directory*, and not a later user of its pid."""
    with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
        is_qemu = file.read().startswith("qemu")
    with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
        command = file.read()  # empty once it is dying
    return is_qemu and (not command or f"{directory}/" in command)


def _await_end(pid: int, cgroup: str) -> None:
    """Wait until *pid*, which has been killed, is gone from its *cgroup*."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    ended = poller.poll(THAW_AFTER_MS)
    if not ended and cgroup:
        from cloche.host.cgroup import thaw

        thaw(cgroup)
    ended = ended or poller.poll(END_TIMEOUT_MS)
    os.close(pidfd)
    if not ended:
        raise ClocheError(
            f"process {pid} does not end although it was killed",
            hint="it may be stuck in the kernel: see /proc/<pid>/stack",
        )


def _run_poststop(state: State) -> list[str]:
    """The container is gone whatever the hooks say (runtime.md, lifecycle step 13)."""
    hooks = state.fields.get("hooks")
    if not hooks:
        return []
    from cloche.heart.hooks import run_all_hooks

    return run_all_hooks(hooks, "poststop", {**state.oci(), "status": STOPPED, "pid": 0})
