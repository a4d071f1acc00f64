"""What is to be found of a container on the host."""

from __future__ import annotations

import contextlib
from pathlib import Path

from .client import Docker
from .dockerd import wait_until


def processes_of(container_id: str) -> list[str]:
    """Command lines of the processes that have the container's id in them, or in their cgroup."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            cgroup = (entry / "cgroup").read_text()
            # Ended, but not reaped: not every machine has a first process that does that.
            is_zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            continue
        if not is_zombie and container_id in command + cgroup:
            found.append(f"{entry.name}: {command}")
    return found


def interfaces(docker: Docker) -> set[str]:
    """Names of the interfaces of the "host"; read through dockerd, which is in that namespace."""
    text = Path(f"/proc/{docker.engine.pid}/net/dev").read_text()
    return {line.split(":")[0].strip() for line in text.splitlines()[2:]}


def traces(docker: Docker, container_id: str) -> dict[str, list[str]]:
    """What of the container is to be found on the host, by kind."""
    exec_root = docker.engine.directory / "exec"
    folders = [exec_root, Path("/run/cloche"), *docker.engine.cgroup_folders()]
    return {
        "processes": processes_of(container_id),
        "mounts": [line for line in docker.engine.mounts().splitlines() if container_id in line],
        "files": [
            str(path) for top in folders if top.exists() for path in top.rglob(f"*{container_id}*")
        ],
    }


def assert_nothing_left(docker: Docker, container_id: str, before: set[str]) -> None:
    """Fail with what is left, after the moment that the shim may take to end.

    *before* are the interfaces that there were without the container.
    """

    def left() -> dict[str, list[str]]:
        new = sorted(interfaces(docker) - before)
        return {**traces(docker, container_id), "interfaces": new}

    with contextlib.suppress(AssertionError):
        wait_until(lambda: not any(left().values()), "nothing is left")
    assert not any(left().values()), left()
