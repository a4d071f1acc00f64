"""linux.resources as values of cgroup v2 files, and as the size of VM that they need."""

from __future__ import annotations

from cloche.base.typed import Struct
from cloche.model.cpus import DEFAULT_PERIOD, cpu_limit, parse_cpus
from cloche.model.problems import quoted, refuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.model.oci import Config
    from cloche.model.oci_linux import CPU, Memory, Resources

RESOURCES = "$.linux.resources"
# With less a guest pages its first program in and out for ever, and runc, whose own process that
# is then, refuses: "unable to set memory limit to 102400 (current usage: 2338816, …)".
LEAST_MEMORY = 2 << 20


class Limits(Struct):
    """What a container may use, as far as it decides the shape of its VM."""

    memory: int | None  # bytes
    cpus: float | None  # processors' worth of time


# What x86-64 has; the names are the kernel's.
HUGE_PAGES = ("2MB", "1GB")
_HUGE = ("max", "rsvd.max")


def limits(config: Config) -> Limits:
    """What the config allows the container; None where it sets no limit."""
    resources = config.linux.resources
    memory, cpu = resources.memory.limit, resources.cpu
    cpus = cpu_limit(cpu.quota, cpu.period, cpu.cpus)
    return Limits(memory if memory and memory > 0 else None, cpus)


def cpu_weight(shares: int) -> int:
    """cgroup v1 shares (2 … 262144) on cgroup v2's scale (1 … 10000), as runc and crun do."""
    return 1 + (min(max(shares, 2), 262_144) - 2) * 9999 // 262_142


def cgroup_values(resources: Resources) -> list[tuple[str, str]]:
    """Files of the container's cgroup in the guest and what is written to them, in order."""
    values = _memory(resources.memory) + _cpu(resources.cpu)
    if resources.pids is not None and resources.pids.limit is not None:
        # The program itself is one: with 0 it could not be made. Nothing more can in any case.
        values.append(("pids.max", _or_max(resources.pids.limit or 1)))
    for huge in resources.hugepage_limits:
        # Pages in use, and those that are only reserved for mappings.
        values += [(f"hugetlb.{huge.page_size}.{name}", str(huge.limit)) for name in _HUGE]
    # Last, so that what the user wrote for cgroup v2 itself wins over what was converted.
    return values + sorted(resources.unified.items())


def _or_max(value: int) -> str:
    return "max" if value < 0 else str(value)


def _memory(memory: Memory) -> list[tuple[str, str]]:
    values = []
    if memory.limit:
        values.append(("memory.max", _or_max(memory.limit)))
    swap = swap_max(memory)
    if swap is not None:
        values.append(("memory.swap.max", _or_max(swap)))
    if memory.reservation:
        values.append(("memory.low", _or_max(memory.reservation)))
    return values


def swap_max(memory: Memory, root: str = RESOURCES) -> int | None:
    """cgroup v2's limit of swap alone, from the specification's limit of memory and swap together.

    None: not set; -1: unlimited. ConfigError when the two limits do not fit together.
    """
    limit, swap = memory.limit or 0, memory.swap or 0
    path = f"{root}.memory.swap"
    if swap == 0:
        # Unlimited memory without a word on swap means unlimited swap, as with cgroup v1.
        return -1 if limit < 0 else None
    if swap < 0:
        return -1
    if limit <= 0:
        refuse(path, "a limit of memory and swap needs a limit of memory ($….memory.limit)")
    if swap < limit:
        refuse(path, f"{swap} is the limit of memory and swap together: at least {limit}")
    return swap - limit


def _cpu(cpu: CPU) -> list[tuple[str, str]]:
    values = []
    # The kernel refuses a weight for an idle cgroup.
    if cpu.idle is not None:
        values.append(("cpu.idle", str(cpu.idle)))
    if cpu.shares and cpu.idle != 1:
        values.append(("cpu.weight", str(cpu_weight(cpu.shares))))
    if cpu.quota or cpu.period:
        quota = cpu.quota if cpu.quota and cpu.quota > 0 else -1
        values.append(("cpu.max", f"{_or_max(quota)} {cpu.period or DEFAULT_PERIOD}"))
    if cpu.burst is not None:
        values.append(("cpu.max.burst", str(cpu.burst)))
    return values


def _check_memory(memory: Memory, path: str) -> None:
    if memory.limit and 0 < memory.limit < LEAST_MEMORY:
        needs = f"a container needs {LEAST_MEMORY} to start"
        refuse(f"{path}.memory.limit", f"unable to set memory limit to {memory.limit} ({needs})")


def check_resources(resources: Resources, path: str = RESOURCES) -> None:
    """ConfigError for values that no cgroup takes; *path* is the JSON path of *resources*."""
    swap_max(resources.memory, path)
    _check_memory(resources.memory, path)
    cpu = resources.cpu
    for name, text in (("cpus", cpu.cpus), ("mems", cpu.mems)):
        try:
            parse_cpus(text or "0")
        except ValueError as error:
            refuse(f"{path}.cpu.{name}", f"{error}, got {quoted(text)}")
    if cpu.idle not in (None, 0, 1):
        refuse(f"{path}.cpu.idle", f"expected 0 or 1, got {cpu.idle}")
    # The kernel's own bounds (max_bw_runtime, min_cfs_quota_period in kernel/sched/core.c).
    if cpu.period and not 1_000 <= cpu.period <= 1_000_000:
        refuse(f"{path}.cpu.period", f"expected 1000 to 1000000 µs, got {cpu.period}")
    if cpu.quota is not None and 0 < cpu.quota < 1_000:
        refuse(f"{path}.cpu.quota", f"expected at least 1000 µs, got {cpu.quota}")
    for index, huge in enumerate(resources.hugepage_limits):
        if huge.page_size not in HUGE_PAGES:
            here = f"{path}.hugepageLimits[{index}].pageSize"
            refuse(here, f"expected one of {HUGE_PAGES}, got {quoted(huge.page_size)}")
    for name, value in resources.unified.items():
        here = f"{path}.unified"
        # A name with a slash would lead out of the container's cgroup.
        if "/" in name or "." not in name.strip("."):
            refuse(here, f"expected names of files like memory.high, got {quoted(name)}")
        if name.startswith("cgroup."):
            refuse(here, f"{quoted(name)} belongs to the runtime")
        if not value:
            refuse(here, f"{quoted(name)} has no value")


_FIELDS = {
    "memory.max": "memory.limit",
    "memory.swap.max": "memory.swap",
    "memory.low": "memory.reservation",
    "cpu.max": "cpu.quota",
    "cpu.max.burst": "cpu.burst",
    "cpu.weight": "cpu.shares",
    "cpu.idle": "cpu.idle",
    "cpuset.cpus": "cpu.cpus",
    "pids.max": "pids.limit",
}


def field_of(file: str, resources: Resources) -> str:
    """The field, below resources, that was to be written to *file*; empty where none is."""
    if file in resources.unified:
        return "unified"
    return "hugepageLimits" if file.startswith("hugetlb.") else _FIELDS.get(file, "")


def resource_warnings(resources: Resources, path: str = RESOURCES) -> list[str]:
    """What is not carried out, in words."""
    memory, cpu = resources.memory, resources.cpu
    no_v2 = "cgroup v2, which the guest has, knows no such limit"
    found = {
        "memory.kernel": (bool(memory.kernel and memory.kernel > 0), no_v2),
        "memory.kernelTCP": (bool(memory.kernel_tcp and memory.kernel_tcp > 0), no_v2),
        "memory.disableOOMKiller": (bool(memory.disable_oom_killer), no_v2),
        "cpu.realtimeRuntime": (bool(cpu.realtime_runtime), no_v2),
        "cpu.realtimePeriod": (bool(cpu.realtime_period), no_v2),
        "network.classID": (bool(resources.network.class_id), no_v2),
        "network.priorities": (bool(resources.network.priorities), no_v2),
        "rdma": (bool(resources.rdma), "the guest has no RDMA devices"),
    }
    return [
        f"{path}.{name}: not applied: {why}" for name, (present, why) in found.items() if present
    ]
