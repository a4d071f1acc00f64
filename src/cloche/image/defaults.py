"""What Docker gives every container (moby: oci/defaults.go, oci/caps/defaults.go)."""

from __future__ import annotations

from typing import Any

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)

MASKED_PATHS = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
)

READ_ONLY_PATHS = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)

NAMESPACES = ("mount", "network", "uts", "pid", "ipc", "cgroup")

_MOUNTS = (
    ("/proc", "proc", "proc", "nosuid,noexec,nodev"),
    ("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
    ("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
    ("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
    ("/sys/fs/cgroup", "cgroup", "cgroup", "ro,nosuid,noexec,nodev"),
    ("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
    ("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=67108864"),
)

# type, major, minor, access, allowed; None is "all". Everything is denied first.
_DEVICE_RULES = (
    (None, None, None, "rwm", False),
    ("c", 1, 5, "rwm", True),  # zero
    ("c", 1, 3, "rwm", True),  # null
    ("c", 1, 9, "rwm", True),  # urandom
    ("c", 1, 8, "rwm", True),  # random
    ("c", 5, 0, "rwm", True),  # tty
    ("c", 5, 1, "rwm", True),  # console
    ("c", 10, 229, "rwm", False),  # fuse
)


def mounts() -> list[dict[str, Any]]:
    """Docker's seven mounts as config.json spells them."""
    return [
        {"destination": where, "type": kind, "source": source, "options": options.split(",")}
        for where, kind, source, options in _MOUNTS
    ]


def device_rules() -> list[dict[str, Any]]:
    """linux.resources.devices: the usual character devices and nothing else."""
    rules = []
    for kind, major, minor, access, allow in _DEVICE_RULES:
        rule = {"allow": allow, "type": kind, "major": major, "minor": minor, "access": access}
        rules.append({key: value for key, value in rule.items() if value is not None})
    return rules
