"""The resource limits of this process (getrlimit(2)): whose they are, and what cloche needs.

They begin as the caller's. The container's processes get them, as from runc; cloche's own
processes raise what would bound a VM in their place, and what others share is neither made nor
used with less than it takes. On the start path: nothing is imported unless something is too low.
"""

from __future__ import annotations

from cloche.base.errors import LimitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Rlimits = Sequence[Sequence[int]]

INFINITY = (1 << 64) - 1
CPU, FSIZE, DATA, STACK = 0, 1, 2, 3
NPROC, NOFILE, MEMLOCK, AS, SIGPENDING = 6, 7, 8, 9, 11
_COUNT = 16

# What bounds QEMU, and not what the container may do: that has the limits of its own in the guest.
# Not among them: core dumps (they would hold the guest's memory) and what permits a priority.
_LIFTED = (CPU, FSIZE, DATA, NPROC, NOFILE, MEMLOCK, AS, SIGPENDING)
# More open files than that nobody is given by default (fs.nr_open).
MOST_FILES = 1 << 20

_MIB = 1 << 20
# Of QEMU's first thread, and, by the C library, of each other one.
STACK_SIZE = 8 * _MIB
# Seen beside a guest's memory: 632 MiB of address space, 271 MiB of them data; QEMU makes further
# threads, with stacks of 8 MiB, when much is asked of its file server.
_QEMU_SPACE, _QEMU_DATA = 1024 * _MIB, 512 * _MIB
# What Python and QEMU need to begin with: 80 descriptors, a few files of some KiB.
_START = {NOFILE: 100, FSIZE: _MIB}
# cloche-thaw puts descriptors aside up to 411. The stack's size decides where all else lies.
THAW = {NOFILE: 512, STACK: STACK_SIZE}
# A sparse file of 1 TiB stands for a disk; a boot is 4 s of work, and a slow host takes longer.
MAKE = {NOFILE: 1024, STACK: STACK_SIZE, FSIZE: 1 << 40, CPU: 600}

_NAMES = {
    CPU: ("RLIMIT_CPU", "s", "t", "CPU"),
    FSIZE: ("RLIMIT_FSIZE", "MiB", "f", "FSIZE"),
    DATA: ("RLIMIT_DATA", "MiB", "d", "DATA"),
    STACK: ("RLIMIT_STACK", "MiB", "s", "STACK"),
    NPROC: ("RLIMIT_NPROC", "processes", "u", "NPROC"),
    NOFILE: ("RLIMIT_NOFILE", "open files", "n", "NOFILE"),
    AS: ("RLIMIT_AS", "MiB", "v", "AS"),
}

# errno proper is one more module to import
_EAGAIN, _ENOMEM, _EMFILE, _EFBIG = 11, 12, 24, 27
_CAUSES = {
    _ENOMEM: "out of memory",
    _EFBIG: "file too large",
    _EAGAIN: "no process could be made",
}
_SUSPECTS = {_ENOMEM: (AS, DATA), _EFBIG: (FSIZE,), _EAGAIN: (NPROC,)}


def own_limits(pid: int = 0) -> list[tuple[int, int]]:
    """Soft and hard limit of each resource, in the kernel's order; LimitError without a descriptor.

    Of this process, or of *pid*. The resource module is one more to import; this takes 40 µs.
    """
    try:
        with open(f"/proc/{pid or 'self'}/limits", "rb", buffering=0) as file:
            lines = (file.read(4096) or b"").split(b"\n")
    except OSError as error:
        raise (_too_many_files() if error.errno == _EMFILE else error) from None
    found = []
    for line in lines[1 : 1 + _COUNT]:  # a name of 25 columns, then soft, hard and the unit
        soft, hard = line[25:].split()[:2]
        found.append((_number(soft), _number(hard)))
    return found


def _number(word: bytes) -> int:
    return INFINITY if word == b"unlimited" else int(word)


def start_needs(memory_mib: int) -> dict[int, int]:
    """What a VM with so much memory needs, by resource; 0: none is started."""
    if not memory_mib:
        return _START
    memory = memory_mib * _MIB
    return {**_START, AS: memory + _QEMU_SPACE, DATA: memory + _QEMU_DATA}


def lift(limits: Rlimits) -> Rlimits:
    """Raise what bounds QEMU as far as this process may; returns the limits as they are then.

    Above the hard limit that takes CAP_SYS_RESOURCE.
    """
    lifted = list(limits)
    for resource in _LIFTED:
        soft, hard = limits[resource]
        wanted = MOST_FILES if resource == NOFILE else INFINITY
        if soft < wanted:
            lifted[resource] = _raise(resource, wanted, hard)
    return lifted


def _raise(resource: int, wanted: int, hard: int) -> tuple[int, int]:
    from cloche.base import syscalls

    for soft in (wanted, min(wanted, hard)):
        limit = (soft, max(soft, hard))
        try:
            syscalls.set_limit(resource, *limit)
        except OSError:  # EPERM
            continue
        return limit
    return syscalls.get_limit(resource)


def lacking(limits: Rlimits, needs: Mapping[int, int]) -> str:
    """The first of *needs* that even the hard limits do not allow, in words; empty if none."""
    for resource, needed in needs.items():
        hard = limits[resource][1]
        if hard < needed:
            name, unit, _, _ = _NAMES[resource]
            wanted = _amount(needed, unit) if unit == "MiB" else str(needed)
            return f"{name} allows {_amount(hard, unit)}, {wanted} are needed"
    return ""


def require(limits: Rlimits, needs: Mapping[int, int]) -> Rlimits:
    """The *limits*, raised where one is below *needs*; LimitError when that is not permitted."""
    if all(limits[resource][0] >= needed for resource, needed in needs.items()):
        return limits  # nearly always
    lifted = lift(limits)
    for resource, needed in needs.items():
        if why := lacking(lifted, {resource: needed}):
            raise LimitError(why, hint=_hint(resource))
    return lifted


def _hint(resource: int) -> str:
    _, _, flag, name = _NAMES[resource]
    return (
        f"raise the hard limit where cloche is started: `ulimit -H{flag}`, "
        f"Limit{name}= of a systemd service"
    )


def _amount(value: int, unit: str) -> str:
    if unit != "MiB":
        return f"{value} {unit}"
    return f"{value / _MIB:.0f} MiB" if value >= _MIB else f"{value} bytes"


def explained(error: BaseException) -> LimitError | None:
    """The limit that a failure of the system points to; None for another failure."""
    number = _ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", 0)
    if number == _EMFILE:
        return _too_many_files()
    suspects = _SUSPECTS.get(number, ())
    try:
        limits = own_limits() if suspects else []
    except (OSError, MemoryError):
        return LimitError(_CAUSES[number], hint=_hint(suspects[0]))
    for resource in suspects:
        if limits[resource][0] != INFINITY:
            name, unit, _, _ = _NAMES[resource]
            amount = _amount(limits[resource][0], unit)
            why = f"{_CAUSES[number]}: {name} allows {amount}, which is too little"
            return LimitError(why, hint=_hint(resource))
    return None


def _too_many_files() -> LimitError:
    why = f"too many open files: RLIMIT_NOFILE is too low, {_START[NOFILE]} are needed"
    return LimitError(why, hint=_hint(NOFILE))
