"""What the tests know of the machine that they run on."""

from __future__ import annotations

from pathlib import Path


def all_capabilities_mask() -> int:
    """Every capability that the kernel knows. A guest's kernel may know others than the host's."""
    return (1 << (int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1)) - 1


def bounding_set() -> int:
    """The capabilities that this process, and so a dockerd of ours, can have."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("CapBnd:")[2].split()[0], 16)


def kernel_release() -> str:
    """The host's ``uname -r``."""
    return Path("/proc/sys/kernel/osrelease").read_text().strip()


def boot_id() -> str:
    """The id of the running kernel: no two boots share one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
