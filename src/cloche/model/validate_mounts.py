"""Checks of ``mounts``: where they may be, and whose owners they may map."""

from __future__ import annotations

import os
import posixpath

from cloche.model.mounts import IDMAP, MS_RDONLY, PROPAGATION, parse_options
from cloche.model.problems import quoted, refuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.model.oci import Mount
    from cloche.model.oci_linux import IDMapping, Linux

# What may be mounted on inside /proc, as with runc: files that lxcfs stands in for.
PROC_FILES = frozenset(
    f"/proc/{name}"
    for name in (
        *("cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo"),
        *("net/dev", "sys/kernel/ns_last_pid", "sys/crypto/fips_enabled"),
    )
)
# mount(2) reads one page of options.
_MOST_DATA = 4095
# File systems of the kernel's own, which runc mounts wherever it is told.
_ANYWHERE = ("proc", "sysfs", "mqueue", "tmpfs", "cgroup", "cgroup2")


def check_mount(mount: Mount, path: str, linux: Linux) -> None:
    """ConfigError for a mount, at JSON *path*, that cannot be carried out."""
    if not mount.destination:
        refuse(f"{path}.destination", "empty")
    if ".." in mount.destination.split("/"):
        refuse(f"{path}.destination", f"leads upwards: {quoted(mount.destination)}")
    if is_bind(mount) and not mount.source:
        refuse(f"{path}.source", "missing: a bind mount needs one")
    if is_bind(mount) or mount.type not in _ANYWHERE:
        _check_proc(mount, f"{path}.destination")
    data = len(parse_options(mount.options).data.encode())
    if data > _MOST_DATA:  # mount(2) would cut them off in silence
        refuse(f"{path}.options", f"too long: {data} bytes, at most {_MOST_DATA}")
    _check_ids(mount, path, linux)


def is_bind(mount: Mount) -> bool:
    """Whether *mount* binds what the host has: by option, as runc decides it, or by type."""
    return mount.type in ("bind", "rbind") or "bind" in mount.options or "rbind" in mount.options


def _check_proc(mount: Mount, path: str) -> None:
    """As runc: programs rely on what /proc says. Symlinks there are the agent's to find."""
    target = posixpath.normpath("/" + mount.destination.lstrip("/"))
    if target == "/proc" and not _is_proc(mount.source):
        refuse(path, "/proc cannot be mounted on because the source is not of type proc")
    if target.startswith("/proc/") and target not in PROC_FILES:
        refuse(path, f"{quoted(target)} cannot be mounted because it is inside /proc")


def _is_proc(source: str) -> bool:
    return os.path.ismount(source) and os.path.exists(os.path.join(source, "self/status"))


Range = tuple[int, int, int]


def mapped_ids(mount: Mount, linux: Linux) -> tuple[list[Range], list[Range]] | None:
    """Users and groups of an id-mapped mount as (id in the file system, id as seen, how many).

    The container's own mapping where an option asks for one and the mount has none; None for a
    mount whose owners stay as they are.
    """
    if mount.uid_mappings or mount.gid_mappings:
        return _ranges(mount.uid_mappings), _ranges(mount.gid_mappings)
    if any(option in IDMAP for option in mount.options):
        return _ranges(linux.uid_mappings), _ranges(linux.gid_mappings)
    return None


def _ranges(mappings: tuple[IDMapping, ...]) -> list[Range]:
    return [(each.container_id, each.host_id, each.size) for each in mappings]


def _check_ids(mount: Mount, path: str, linux: Linux) -> None:
    ids = mapped_ids(mount, linux)
    if ids is None:
        return
    names = ("uidMappings", "gidMappings")
    if not is_bind(mount):
        given = "uidMappings" if mount.uid_mappings else "gidMappings"
        which = given if mount.uid_mappings or mount.gid_mappings else "options"
        refuse(f"{path}.{which}", "only bind mounts can be id-mapped")
    writable = not parse_options(mount.options).flags & MS_RDONLY
    for name, ranges in zip(names, ids, strict=True):
        if not ranges:
            refuse(f"{path}.{name}", "missing: an id-mapped mount needs one, or a user namespace")
        # What the guest makes is made by QEMU, as root; see cloche.host.idmap.
        as_root = any(seen == 0 and size > 0 for _, seen, size in ranges)
        if writable and not as_root and not linux.uid_mappings:
            refuse(f"{path}.{name}", "a writable mount must map some id to 0: nobody could create")


def mount_warnings(mount: Mount, path: str) -> list[str]:
    """What of *mount*, at JSON *path*, is accepted and not carried out."""
    warnings = []
    if not mount.destination.startswith("/"):
        warnings.append(f"{path}.destination: not absolute, taken from the root")
    if sum(option in PROPAGATION for option in mount.options) > 1:
        warnings.append(f"{path}.options: several propagation modes, the last one is applied")
    if not is_bind(mount):
        return warnings
    options = parse_options(mount.options)
    shared = [name for name in mount.options if name.lstrip("r") in ("shared", "slave")]
    if shared:
        warnings.append(
            f"{path}.options: {shared[-1]} works inside the VM only: mounts that the host makes "
            "later below the source do not appear"
        )
    if options.data:
        warnings.append(
            f"{path}.options: no use for a bind mount, left out: {quoted(options.data)}"
        )
    if options.tmpcopyup:
        warnings.append(f"{path}.options: tmpcopyup has no use for a bind mount")
    return warnings
