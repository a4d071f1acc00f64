"""A change of a running container's limits: what it comes to, and whether its VM has room."""

from __future__ import annotations

from cloche.base.typed import items, replace
from cloche.model.cgroup import cgroup_values
from cloche.model.cpus import DEFAULT_PERIOD, parse_cpus
from cloche.model.oci_linux import Resources
from cloche.model.problems import refuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloche.base.typed import S

# Engines write a zero for what is to stay as it is; of these a zero is a value.
_ZERO_COUNTS = {"idle", "burst", "check_before_update"}
_ANEW = "make the container anew with this limit: its VM will be as large as it takes"


def merged(before: Resources, update: Resources) -> Resources:
    """The limits of a container that had *before* and is asked for *update*.

    As with runc a value that is absent, zero or empty leaves the limit as it is, unlimited memory
    without a word on swap is unlimited swap, device rules stay, and `unified` is for this once.
    """
    memory = _merged(before.memory, update.memory)
    if (update.memory.limit or 0) < 0 and not update.memory.swap:
        memory = replace(memory, swap=-1)
    has_pids = update.pids is not None and bool(update.pids.limit)
    return Resources(
        devices=before.devices,
        memory=memory,
        cpu=_merged(before.cpu, update.cpu),
        pids=update.pids if has_pids else before.pids,
        block_io=_merged(before.block_io, update.block_io),
        hugepage_limits=update.hugepage_limits or before.hugepage_limits,
        network=_merged(before.network, update.network),
        rdma=update.rdma or before.rdma,
        unified=update.unified,
    )


def _merged(before: S, update: S) -> S:
    changes = {
        name: value
        for name, value in items(update)
        if value or (name in _ZERO_COUNTS and value is not None)
    }
    return replace(before, **changes)


def changes(before: Resources, after: Resources) -> list[tuple[str, str]]:
    """What is to be written to the container's cgroup in the guest, in order."""
    known = cgroup_values(replace(before, unified={}))
    wanted = [pair for pair in cgroup_values(after) if pair not in known]
    if (after.cpu.burst or 0) < (before.cpu.burst or 0):
        # The kernel refuses a quota below the burst that is still in force.
        wanted.sort(key=lambda pair: pair[0] != "cpu.max.burst")
    if after.cpu.cpus != before.cpu.cpus and after.cpu.cpus:
        wanted.append(("cpuset.cpus", f"0-{len(parse_cpus(after.cpu.cpus)) - 1}"))
    return wanted


def check_room(before: Resources, after: Resources, *, room: int, cpus: int) -> None:
    """ConfigError for a limit that is changed to more than the VM has.

    *room* is the most memory that a container's limit may be in this VM, in bytes, *cpus* the
    number of its virtual processors.
    """
    limit = after.memory.limit or 0
    if limit != before.memory.limit and limit > room:
        why = f"{limit} bytes do not fit into the VM, which has {room} ({room >> 20} MiB) for them"
        refuse("$.memory.limit", why, _ANEW)
    cpu, old = after.cpu, before.cpu
    has = f"the VM has {cpus} virtual processor{'s' if cpus > 1 else ''}"
    if (cpu.quota, cpu.period) != (old.quota, old.period) and (cpu.quota or 0) > 0:
        wanted = (cpu.quota or 0) / (cpu.period or DEFAULT_PERIOD)
        if wanted > cpus:
            refuse("$.cpu.quota", f"{wanted:g} processors' worth of time: {has}", _ANEW)
    if cpu.cpus and cpu.cpus != old.cpus and len(parse_cpus(cpu.cpus)) > cpus:
        refuse("$.cpu.cpus", f"{len(parse_cpus(cpu.cpus))} processors: {has}", _ANEW)


def exceeds_limit(after: Resources, values: Sequence[tuple[str, str]], current: int) -> str:
    """Why checkBeforeUpdate forbids *values* while *current* bytes are in use; else nothing."""
    limit = dict(values).get("memory.max", "max")
    if not after.memory.check_before_update or limit == "max" or int(limit) >= current:
        return ""
    return f"$.memory.limit: {limit} bytes are less than the {current} in use (checkBeforeUpdate)"
