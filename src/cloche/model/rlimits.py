"""Resource limits by name (setrlimit(2), the generic numbering that x86, ARM and RISC-V share)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloche.base.limits import Rlimits
    from cloche.model.oci import Rlimit

RLIMITS = {
    "RLIMIT_CPU": 0,
    "RLIMIT_FSIZE": 1,
    "RLIMIT_DATA": 2,
    "RLIMIT_STACK": 3,
    "RLIMIT_CORE": 4,
    "RLIMIT_RSS": 5,
    "RLIMIT_NPROC": 6,
    "RLIMIT_NOFILE": 7,
    "RLIMIT_MEMLOCK": 8,
    "RLIMIT_AS": 9,
    "RLIMIT_LOCKS": 10,
    "RLIMIT_SIGPENDING": 11,
    "RLIMIT_MSGQUEUE": 12,
    "RLIMIT_NICE": 13,
    "RLIMIT_RTPRIO": 14,
    "RLIMIT_RTTIME": 15,
}


def rlimit_plan(named: Sequence[Rlimit], callers: Rlimits) -> list[list[int]]:
    """What the agent is to set, as number, soft, hard: those *named*, and of others the caller's.

    As with runc, whose processes are the caller's children.
    """
    plan = [[RLIMITS[limit.type], limit.soft, limit.hard] for limit in named]
    known = {number for number, _, _ in plan}
    plan += [[number, *limit] for number, limit in enumerate(callers) if number not in known]
    return plan
