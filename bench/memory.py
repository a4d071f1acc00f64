"""Memory of the host processes of one idle container, and of many side by side."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.cases import LIVE, Bench, idle_container, new_id, present
from bench.processes import Process, Usage, all_processes, cgroups_of, memory_of, processes_below
from bench.rounds import Series
from bench.runtimes import CLOCHE, RUNC, RUNSC, Runtime
from bench.timing import BenchError, Command

SETTLE_S = 1.0
"""How long a container idles before its memory is read: nothing tells that it has settled."""
CROWD = 20
_CROWD_TIMEOUT_S = 90.0
_MIB_PER_CLOCHE = 128

QEMU = "QEMU"
SUPERVISOR = "supervisor"
SANDBOX = "sandbox"
GOFER = "gofer"
PAYLOAD = "payload"
TOGETHER = "together"


@dataclass
class Idle:
    """Memory by contender, round and role; *left_out* has those without numbers, and why."""

    rounds: dict[str, list[dict[str, Usage]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    other_vms: int = 0


@dataclass
class Crowd:
    """Containers side by side: what became of them. Times in s, memory in KiB."""

    wanted: int
    running: int
    seconds_to_run: float
    usage: dict[str, Usage]
    seconds_to_remove: float
    left_over: list[str]
    errors: list[str]


def role_of(runtime: str, process: Process, container_pid: int) -> str:
    """What *process* is for: part of the runtime's own upkeep, or the container's payload."""
    first = process.argv[0] if process.argv else ""
    if runtime == RUNC:
        return PAYLOAD if process.pid == container_pid else "runc"
    if runtime == RUNSC:
        for role in (SANDBOX, GOFER):
            if first == f"runsc-{role}":
                return role
        return PAYLOAD  # the ptrace platform's stubs, in whose memory the payload runs
    return QEMU if os.path.basename(first).startswith("qemu-system") else SUPERVISOR


def measure_idle(bench: Bench, rounds: int) -> Idle:
    """*rounds* times: one idle container of each contender, alone of its kind on the machine."""
    idle = Idle()
    series = Series("memory")
    runtimes = present(bench, series, LIVE)
    idle.other_vms = _other_vms()
    for done in range(1, rounds + 1):
        for runtime in runtimes:
            if runtime.name not in series.left_out:
                try:
                    idle.rounds.setdefault(runtime.name, []).append(_one_idle(bench, runtime))
                except BenchError as error:
                    idle.rounds.pop(runtime.name, None)
                    series.left_out[runtime.name] = str(error)
        bench.progress.round(done, rounds)
    idle.left_out = series.left_out
    return idle


def _one_idle(bench: Bench, runtime: Runtime) -> dict[str, Usage]:
    with idle_container(bench, runtime) as container:
        _pause(SETTLE_S)
        pid = int(runtime.state(container)["pid"])
        return usage_by_role(runtime.name, runtime.processes(container), pid)


def usage_by_role(runtime: str, processes: Sequence[Process], pid: int) -> dict[str, Usage]:
    """The memory of *processes* by role, and of all TOGETHER."""
    pids: dict[str, list[int]] = {}
    for process in processes:
        pids.setdefault(role_of(runtime, process, pid), []).append(process.pid)
    usage = {role: memory_of(members) for role, members in sorted(pids.items())}
    usage[TOGETHER] = memory_of(process.pid for process in processes)
    return usage


def _other_vms() -> int:
    """QEMU processes already there: memory they share with ours is only partly counted as ours."""
    argvs = [process.argv for process in all_processes() if process.argv]
    return sum(os.path.basename(argv[0]).startswith("qemu-system") for argv in argvs)


def _pause(seconds: float) -> None:
    select.select([], [], [], seconds)


def measure_crowd(bench: Bench) -> Crowd:
    """CROWD containers started at once; BenchError when the machine has no memory for them."""
    _check_memory(CROWD * _MIB_PER_CLOCHE)
    runtime = bench.runtimes[CLOCHE]
    ids = [new_id() for _ in range(CROWD)]
    try:
        began = time.monotonic()
        errors = _start_all(bench, runtime, ids)
        seconds_to_run = time.monotonic() - began
        running = sum(_runs(runtime, container) for container in ids)
        _pause(SETTLE_S)
        found = processes_below(runtime.root, all_processes(), os.getpid())
        usage = usage_by_role(CLOCHE, found, 0)
    finally:
        began = time.monotonic()
        for container in ids:
            runtime.delete(container)
        seconds_to_remove = time.monotonic() - began
    left_over = left_overs(runtime, ids)
    return Crowd(CROWD, running, seconds_to_run, usage, seconds_to_remove, left_over, errors)


def _start_all(bench: Bench, runtime: Runtime, ids: list[str]) -> list[str]:
    """Start all of *ids* at once and wait until they run; what went wrong."""
    commands = [
        Command(runtime.run(bench.bundles.idle, container, detach=True), runtime.environment)
        for container in ids
    ]
    errors = []
    deadline = time.monotonic() + _CROWD_TIMEOUT_S
    for done, command in enumerate(commands, start=1):
        try:
            command.finish(max(0.0, deadline - time.monotonic()))
        except BenchError as error:
            errors.append(str(error))
        bench.progress.round(done, len(commands))
    return errors


def _runs(runtime: Runtime, container: str) -> bool:
    try:
        return bool(runtime.state(container)["status"] == "running")
    except BenchError:
        return False


def left_overs(runtime: Runtime, ids: list[str]) -> list[str]:
    """What is still there of removed containers: processes, folders, mounts, cgroups."""
    found = [
        f"process {process.pid} ({process.command})"
        for process in processes_below(runtime.root, all_processes(), os.getpid())
    ]
    found += [f"folder {runtime.root / name}" for name in runtime.containers()]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [f"mount {line.split()[4]}" for line in mounts if f" {runtime.root}/" in line]
    return found + [f"cgroup {path}" for name in ids for path in cgroups_of(name)]


def _check_memory(mib: int) -> None:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:") and int(line.split()[1]) < mib * 1024:
            raise BenchError(f"less than {mib} MiB of memory are free for {CROWD} containers")
