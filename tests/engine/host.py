"""What the tests know of the machine that they run on."""

from __future__ import annotations

from pathlib import Path

CAP_AUDIT_READ = 37


def all_capabilities_mask(dockerd_version: str) -> int:
    """What a dockerd means by all capabilities: those of the host's kernel that it can name.

    Up to 20.10 its list ends with CAP_AUDIT_READ whatever the kernel knows (moby,
    oci/caps/utils.go); CAP_PERFMON, CAP_BPF and CAP_CHECKPOINT_RESTORE never reach the runtime.
    """
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    if int(dockerd_version.split(".")[0]) <= 20:
        last = min(last, CAP_AUDIT_READ)
    return (1 << (last + 1)) - 1


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
