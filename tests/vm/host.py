"""What can be seen on the host of containers: processes, mounts, cgroups, memory."""

from __future__ import annotations

import os
from pathlib import Path

from cloche.host.cgroup import hierarchies


def processes(root: Path) -> list[tuple[int, str]]:
    """Pid and command line of every process that has *root* in its command line.

    Supervisors have (they are forked by `create --root …`), and QEMU has (the share is below).
    """
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            command = _command_line(name)
            if f"{root}/" in f"{command} ".replace(f"{root} ", f"{root}/"):
                found.append((int(name), command))
    return sorted(found)


def _command_line(pid: str) -> str:
    try:
        return Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""  # it has ended meanwhile


def qemu_of(root: Path, container_id: str) -> int:
    """The pid of the QEMU of a container."""
    (pid,) = [
        pid
        for pid, command in processes(root)
        if f"{root}/{container_id}/" in command and "qemu-system" in command.split()[0]
    ]
    return pid


def mounts(root: Path) -> list[str]:
    """The mounts below *root* in the host's mount namespace."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [f"mount {line}" for line in lines if str(root) in line.split()[4]]


def cgroups(name: str) -> list[str]:
    """The folders of cgroups named *name*, two levels below each hierarchy's root."""
    found: list[str] = []
    for hierarchy in hierarchies():
        found += [f"cgroup {path}" for path in Path(hierarchy).glob(f"*/{name}")]
    return found


def pss_kib(pid: int) -> int:
    """The memory of a process, what it shares with others being shared out (proc(5))."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError(f"no Pss of {pid}")


def tail(path: Path, size: int = 4000) -> str:
    """The end of a file as text."""
    return path.read_bytes()[-size:].decode(errors="replace")
