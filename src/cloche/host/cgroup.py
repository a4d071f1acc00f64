"""The host's cgroup of a sandbox: supervisor and QEMU live where the engine expects them."""

from __future__ import annotations

import os
import select

from cloche.base.errors import ClocheError, ConfigError
from cloche.base.files import read_text
from cloche.base.quick import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloche.model.host_cgroup import HostSetting

ROOT = "/sys/fs/cgroup"
_PF_EXITING = 0x4  # <linux/sched.h>
_SIGKILL_BIT = 1 << 8
DYING_TIMEOUT_MS = 2000
EBUSY = 16  # errno proper is one more module to import
# EEXIST, ENOTDIR, EINVAL, ENAMETOOLONG, ELOOP
_OF_THE_NAME = (17, 20, 22, 36, 40)
# PATH_MAX, less a hierarchy's mount point and the name of a file in it.
_MOST_BYTES = 3900
_MOST_LEVELS = 255  # what walks them is recursive


def relative_path(cgroups_path: str, container_id: str) -> str:
    """linux.cgroupsPath as a path below a hierarchy's root, without the leading slash.

    `slice:prefix:name` (systemd's notation) becomes the path systemd would use. ConfigError for
    what no cgroup can be named.
    """
    if not cgroups_path:
        return f"cloche/{container_id}"
    path = _below_root(cgroups_path)
    if not path:
        raise ConfigError(f"$.linux.cgroupsPath: names the root: {cgroups_path[:80]!r}")
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise ConfigError(f"$.linux.cgroupsPath: not UTF-8: {cgroups_path[:80]!r}") from None
    if size > _MOST_BYTES:
        raise ConfigError(f"$.linux.cgroupsPath: file name too long: {cgroups_path[:80]!r}")
    if path.count("/") >= _MOST_LEVELS:
        raise ConfigError(f"$.linux.cgroupsPath: more than {_MOST_LEVELS} levels")
    if "\n" in path or "\0" in path:  # the kernel refuses both (cgroup_mkdir)
        raise ConfigError(f"$.linux.cgroupsPath: no name of a cgroup: {cgroups_path[:80]!r}")
    return path


def _below_root(cgroups_path: str) -> str:
    if cgroups_path.count(":") != 2 or "/" in cgroups_path:
        return os.path.normpath("/" + cgroups_path).lstrip("/")
    slice_name, prefix, name = cgroups_path.split(":")
    scope = f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    return os.path.join(_slice_path(slice_name or "system.slice"), scope)


def _slice_path(name: str) -> str:
    """`a-b.slice` lies at a.slice/a-b.slice (systemd.slice(5))."""
    parts = name.removesuffix(".slice").split("-")
    if not all(parts):  # of those with an empty part systemd has the root only
        if name == "-.slice":
            return ""
        raise ConfigError(f"$.linux.cgroupsPath: {name[:80]!r} cannot name a slice")
    return "/".join("-".join(parts[: count + 1]) + ".slice" for count in range(len(parts)))


def hierarchies() -> list[str]:
    """The mount points of the host's hierarchies: each v1 controller's, or the one of v2."""
    if os.path.exists(os.path.join(ROOT, "cgroup.controllers")):
        return [ROOT]
    found = []
    for name in os.listdir(ROOT) if os.path.isdir(ROOT) else []:
        path = os.path.join(ROOT, name)
        if not os.path.islink(path) and os.path.exists(os.path.join(path, "cgroup.procs")):
            found.append(path)
    return sorted(found)


def join(path: str, memory_limit: int, pids: Sequence[int]) -> bool:
    """Make *path* in every hierarchy and move the processes *pids* there.

    The kernel makes the first to be moved wait about 12 ms (a grace period of RCU), so this is
    done by somebody who has the time.

    *memory_limit* in bytes bounds the whole VM, QEMU included; returns whether there is a memory
    controller that does. A controller that cannot be used (a read-only or foreign hierarchy) is
    left out; the container runs all the same.
    """
    bounded = False
    for hierarchy in hierarchies():
        directory = os.path.join(hierarchy, path)
        with suppress(OSError):
            _make(directory, path)
            if hierarchy.endswith("/cpuset"):
                _inherit_cpuset(hierarchy, path)
            elif os.path.exists(os.path.join(hierarchy, "cgroup.controllers")):
                _pass_on(hierarchy, path)
            for name in ("memory.limit_in_bytes", "memory.max"):
                if os.path.exists(os.path.join(directory, name)):
                    _write(os.path.join(directory, name), str(memory_limit).encode())
                    bounded = True
            for pid in pids:
                _write(os.path.join(directory, "cgroup.procs"), str(pid).encode())
    return bounded


def leave() -> None:
    """Move this process to the root of each hierarchy, so that nobody's limits are about it."""
    for hierarchy in hierarchies():
        with suppress(OSError):
            _write(os.path.join(hierarchy, "cgroup.procs"), str(os.getpid()).encode())


def _make(directory: str, path: str) -> None:
    """Make the cgroup *directory*; ConfigError where it is *path* that no host could make."""
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        if error.errno not in _OF_THE_NAME:
            raise
        cause = (error.strerror or "").lower()
        raise ConfigError(f"$.linux.cgroupsPath: {path[:80]!r}: {cause}") from None


# What freezes a cgroup, and what it holds then: of v1, where it tells of the levels above as well,
# and of v2, where each level tells of itself.
_FREEZERS = {"freezer.state": ("FROZEN", "FREEZING"), "cgroup.freeze": ("1",)}


def frozen_by(path: str) -> str:
    """The file that says that processes in *path* are, or would be, frozen; empty: they are not."""
    for hierarchy in hierarchies():
        level = path
        while level:
            for name, values in _FREEZERS.items():
                file = os.path.join(hierarchy, level, name)
                if (read_text(file) or "").strip() in values:
                    return file
            level = os.path.dirname(level)
    return ""


def thaw(path: str) -> None:
    """Let the processes in *path* go on: one that is frozen cannot be killed with cgroup v1."""
    for hierarchy in hierarchies():
        for name, value in (("freezer.state", b"THAWED"), ("cgroup.freeze", b"0")):
            with suppress(OSError):
                _write(os.path.join(hierarchy, path, name), value)


def _pass_on(hierarchy: str, path: str) -> None:
    """Have the controllers of cgroup v2 reach *path*: each level hands them to the next.

    One that cannot be handed on (a level with processes of its own, cgroups(7)) is left out.
    """
    level = hierarchy
    for part in path.split("/"):
        for name in (read_text(os.path.join(level, "cgroup.controllers")) or "").split():
            with suppress(OSError):
                _write(os.path.join(level, "cgroup.subtree_control"), f"+{name}".encode())
        level = os.path.join(level, part)


def apply(path: str, settings: Sequence[HostSetting], root: str) -> list[str]:
    """Write *settings* to the cgroup *path*; returns warnings. *root* is their JSON path.

    ClocheError, the field first, for a value that the kernel refuses, and ConfigError for a limit
    that no controller of this host knows.
    """
    warnings: list[str] = []
    if not settings:
        return warnings
    directories = [os.path.join(hierarchy, path) for hierarchy in hierarchies()]
    for setting in settings:
        field = f"{root}.{setting.field}"
        file, value = _first_there(directories, setting)
        if file:
            try:
                _write(file, value.encode())
            except OSError as error:
                cause = (error.strerror or str(error)).lower()
                raise ClocheError(f"{field}: writing {value!r} to {file}: {cause}") from None
            continue
        names = " or ".join(name for name, _ in setting.files)
        why = f"{field}: this host's cgroups have no {names}"
        if not setting.otherwise:
            raise ConfigError(why)
        warnings.append(f"{why}: {setting.otherwise}")
    return warnings


def _first_there(directories: list[str], setting: HostSetting) -> tuple[str, str]:
    """The file to write and the value for it; empty when there is none."""
    for name, value in setting.files:
        for directory in directories:
            file = os.path.join(directory, name)
            if os.path.exists(file):
                return file, value
    return "", ""


def _inherit_cpuset(hierarchy: str, path: str) -> None:
    """cpuset of cgroup v1 starts empty, and nothing can join before it has CPUs and memory."""
    parent = hierarchy
    for part in path.split("/"):
        child = os.path.join(parent, part)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not (read_text(os.path.join(child, name)) or "").strip():
                inherited = read_text(os.path.join(parent, name)) or ""
                _write(os.path.join(child, name), inherited.encode())
        parent = child


def remove(path: str) -> None:
    """Remove *path* and what lies below it in every hierarchy; harmless where it is gone."""
    for hierarchy in hierarchies():
        top = os.path.join(hierarchy, path)
        for directory, _, _ in os.walk(top, topdown=False):
            try:
                os.rmdir(directory)
            except OSError as error:
                if error.errno == EBUSY and _await_dying(directory):
                    with suppress(OSError):
                        os.rmdir(directory)


def _await_dying(directory: str) -> bool:
    """Wait for what is on its way out of a cgroup (a QEMU takes ms); whether there was any."""
    waited = False
    for pid in (read_text(os.path.join(directory, "cgroup.procs")) or "").split():
        if not _is_dying(pid):
            continue
        with suppress(OSError):  # it has ended meanwhile
            pidfd = os.pidfd_open(int(pid))
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            poller.poll(DYING_TIMEOUT_MS)
            os.close(pidfd)
        waited = True
    return waited


def _is_dying(pid: str) -> bool:
    """Whether it has been killed, is about to end, or has ended (proc(5))."""
    try:
        stat, status = (read_text(f"/proc/{pid}/{name}") or "" for name in ("stat", "status"))
    except ProcessLookupError:
        return True
    if not stat or not status:
        return True
    flags = int(stat.rpartition(")")[2].split()[6])
    lines = [line.split() for line in status.splitlines()]
    pending = [int(words[1], 16) for words in lines if words[0] in ("SigPnd:", "ShdPnd:")]
    return bool(flags & _PF_EXITING) or any(mask & _SIGKILL_BIT for mask in pending)


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
