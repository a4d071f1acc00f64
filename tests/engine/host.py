"""What the tests know of the machine that they run on."""

from __future__ import annotations

from pathlib import Path

CAP_AUDIT_READ = 37


def all_capabilities_mask(dockerd_version: str, dockerd_pid: int) -> int:
    """What a dockerd means by all capabilities, which is what reaches the runtime.

    Up to 20.10 those of the host's kernel that it can name, and its list ends with CAP_AUDIT_READ
    whatever the kernel knows (moby, oci/caps/utils.go): CAP_PERFMON, CAP_BPF and
    CAP_CHECKPOINT_RESTORE are never among them. From 23.0 on those that it has itself
    (oci/caps/utils_linux.go, by containerd's cap.Current).
    """
    if int(dockerd_version.split(".")[0]) > 20:
        return _capabilities("CapEff", dockerd_pid)
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    return (1 << (min(last, CAP_AUDIT_READ) + 1)) - 1


def bounding_set() -> int:
    """The capabilities that this process, and so a dockerd of ours, can have."""
    return _capabilities("CapBnd", "self")


def _capabilities(which: str, pid: int | str) -> int:
    """One of the sets of a process, as a mask."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{which}:")[2].split()[0], 16)


def kernel_release() -> str:
    """The host's ``uname -r``."""
    return Path("/proc/sys/kernel/osrelease").read_text().strip()


def boot_id() -> str:
    """The id of the running kernel: no two boots share one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def qemu_of(supervisor: int) -> int:
    """The process id of the QEMU of that supervisor, which may have a file server beside it."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    (qemu,) = (pid for pid, command in commands.items() if b"qemu" in command.split(b"\0")[0])
    return int(qemu)
