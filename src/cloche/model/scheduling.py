"""How a process is scheduled and what it takes itself to be running on.

process.scheduler, ioPriority and execCPUAffinity, and linux.personality: checked, and turned into
what the system calls of those names take (docs/protocol.md, Tuning).
"""

from __future__ import annotations

import struct

from cloche.model.cpus import parse_cpus
from cloche.model.memory_policy import memory_policy
from cloche.model.problems import quoted, refuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.model.oci import ExecCPUAffinity, IOPriority, Process, Scheduler
    from cloche.model.oci_linux import Linux, Personality

# linux/sched.h and linux/sched/types.h
POLICIES = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
SCHED_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
# linux/ioprio.h
IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
# linux/personality.h
PERSONALITIES = {"LINUX": 0, "LINUX32": 8}

_SCHED_ATTR = struct.Struct("<IIQiIQQQII")  # struct sched_attr, 56 bytes
_MAX_PRIORITY = 99


def check_scheduling(process: Process, path: str) -> None:
    """ConfigError, as runc has it, for what no process at JSON *path* can be given."""
    if process.scheduler is not None:
        _check_scheduler(process.scheduler, f"{path}.scheduler")
    if process.io_priority is not None:
        _check_io_priority(process.io_priority, f"{path}.ioPriority")
    if process.exec_cpu_affinity is not None:
        for name in ("initial", "final"):
            _cpus(getattr(process.exec_cpu_affinity, name), f"{path}.execCPUAffinity.{name}")


def check_personality(personality: Personality) -> None:
    """ConfigError for a domain that Linux does not have."""
    if personality.domain not in PERSONALITIES:
        refuse(
            "$.linux.personality.domain",
            f"expected one of {tuple(PERSONALITIES)}, got {quoted(personality.domain)}",
        )


def tuning(process: Process, first: Process, linux: Linux, *, is_exec: bool) -> dict[str, object]:
    """The plan's Tuning; empty where nothing is asked for.

    What an exec's *process* leaves open is as for the container's *first* one, as with runc; the
    affinity is for execs only.
    """
    plan: dict[str, object] = {}
    scheduler = process.scheduler or first.scheduler
    if scheduler is not None:
        plan["sched_attr"] = _sched_attr(scheduler)
    io_priority = process.io_priority or first.io_priority
    if io_priority is not None:
        plan["io_priority"] = IO_CLASSES[io_priority.class_] << 13 | io_priority.priority
    affinity = process.exec_cpu_affinity or first.exec_cpu_affinity
    if is_exec and affinity is not None and affinity.final:
        plan["affinity"] = _affinity(affinity)
    if linux.memory_policy is not None:
        plan["memory_policy"] = memory_policy(linux.memory_policy)
    if linux.personality is not None and PERSONALITIES[linux.personality.domain]:
        plan["personality"] = PERSONALITIES[linux.personality.domain]
    return plan


def _check_scheduler(scheduler: Scheduler, path: str) -> None:
    policy = scheduler.policy
    if policy not in POLICIES:
        refuse(f"{path}.policy", f"expected one of {tuple(POLICIES)}, got {quoted(policy)}")
    for index, flag in enumerate(scheduler.flags):
        if flag not in SCHED_FLAGS:
            refuse(f"{path}.flags[{index}]", f"no such flag: {quoted(flag)}")
    # The kernel would take it as "keep what was", or not at all.
    if not -20 <= scheduler.nice <= 19:
        refuse(f"{path}.nice", f"expected -20 to 19, got {scheduler.nice}")
    if scheduler.priority and policy not in ("SCHED_FIFO", "SCHED_RR"):
        refuse(f"{path}.priority", f"for SCHED_FIFO and SCHED_RR only, not for {policy}")
    if not 0 <= scheduler.priority <= _MAX_PRIORITY:
        refuse(f"{path}.priority", f"expected 1 to {_MAX_PRIORITY}, got {scheduler.priority}")
    for name in ("runtime", "deadline", "period"):
        if getattr(scheduler, name) and policy != "SCHED_DEADLINE":
            refuse(f"{path}.{name}", f"for SCHED_DEADLINE only, not for {policy}")


def _sched_attr(scheduler: Scheduler) -> bytes:
    flags = 0
    for flag in scheduler.flags:
        flags |= SCHED_FLAGS[flag]
    return _SCHED_ATTR.pack(
        _SCHED_ATTR.size,
        POLICIES[scheduler.policy],
        flags,
        scheduler.nice,
        scheduler.priority,
        scheduler.runtime,
        scheduler.deadline,
        scheduler.period,
        0,
        0,
    )


def _check_io_priority(priority: IOPriority, path: str) -> None:
    if priority.class_ not in IO_CLASSES:
        expected = f"expected one of {tuple(IO_CLASSES)}, got {quoted(priority.class_)}"
        refuse(f"{path}.class", expected)
    if not 0 <= priority.priority <= 7:
        refuse(f"{path}.priority", f"expected 0 to 7, got {priority.priority}")


def _cpus(text: str, path: str) -> set[int]:
    if not text:
        return set()
    try:
        return parse_cpus(text)
    except ValueError as error:
        refuse(path, f"{error}, got {quoted(text)}")


def _affinity(affinity: ExecCPUAffinity) -> bytes:
    """A mask of processors as sched_setaffinity(2) takes it: whole words of 64 bits."""
    mask = sum(1 << cpu for cpu in parse_cpus(affinity.final))
    return mask.to_bytes((mask.bit_length() + 63) // 64 * 8, "little")
