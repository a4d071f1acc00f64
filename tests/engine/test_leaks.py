"""After a container is gone, nothing of it is left on the host."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from .client import Docker
from .dockerd import wait_until
from .image import IMAGE


def _processes_of(container_id: str) -> list[str]:
    """Command lines of the processes that have the container's id in them, or in their cgroup."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            cgroup = (entry / "cgroup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if container_id in command + cgroup:
            found.append(f"{entry.name}: {command}")
    return found


def _interfaces(docker: Docker) -> set[str]:
    """Names of the interfaces of the "host"; read through dockerd, which is in that namespace."""
    text = Path(f"/proc/{docker.engine.pid}/net/dev").read_text()
    return {line.split(":")[0].strip() for line in text.splitlines()[2:]}


def _traces(docker: Docker, container_id: str) -> dict[str, list[str]]:
    """What of the container is to be found on the host, by kind."""
    exec_root = docker.engine.directory / "exec"
    folders = [exec_root, Path("/run/cloche"), *docker.engine.cgroup_folders()]
    return {
        "processes": _processes_of(container_id),
        "mounts": [line for line in docker.engine.mounts().splitlines() if container_id in line],
        "files": [
            str(path) for top in folders if top.exists() for path in top.rglob(f"*{container_id}*")
        ],
    }


def _assert_nothing_left(docker: Docker, container_id: str, interfaces: set[str]) -> None:
    """Fail with what is left, after the moment that the shim may take to end."""

    def left() -> dict[str, list[str]]:
        new = sorted(_interfaces(docker) - interfaces)
        return {**_traces(docker, container_id), "interfaces": new}

    with contextlib.suppress(AssertionError):
        wait_until(lambda: not any(left().values()), "nothing is left")
    assert not any(left().values()), left()


@pytest.mark.parametrize(
    ("options", "how"),
    [
        pytest.param((), "remove by force", id="removed"),
        pytest.param(("--init", "-v", "/anonymous", "--tmpfs", "/t"), "stop", id="stopped"),
        pytest.param(("--network", "none"), "remove by force", id="no-network"),
    ],
)
def test_nothing_left(docker: Docker, options: tuple[str, ...], how: str) -> None:
    """No process, mount, cgroup, file, or interface of a container outlives it."""
    before = _interfaces(docker)
    name = docker.start(*options, IMAGE, "sleep", "1000")
    docker("exec", "-d", name, "sleep", "1000")
    container_id: str = docker.inspect(name)["Id"]
    running = _traces(docker, container_id)
    assert running["processes"], "the search finds nothing of a running container"
    if how == "stop":
        docker("stop", name)
        docker("rm", "-v", name)
    else:
        docker("rm", "-f", "-v", name)
    _assert_nothing_left(docker, container_id, before)


def test_nothing_left_of_failed_start(docker: Docker) -> None:
    """The same for a container whose program could not be started."""
    before = _interfaces(docker)
    docker(*docker.run_args(IMAGE, "nosuch"), code=127)
    container_id: str = docker.inspect(docker.last)["Id"]
    docker("rm", docker.last)
    _assert_nothing_left(docker, container_id, before)


def test_runtime_killed(docker: Docker) -> None:
    """When the process that stands for a container is killed, docker sees an ended container."""
    before = _interfaces(docker)
    name = docker.start(IMAGE, "sleep", "1000")
    inspected = docker.inspect(name)
    os.kill(inspected["State"]["Pid"], signal.SIGKILL)
    wait_until(lambda: not docker.state(name)["Running"], "docker sees the end")
    assert docker.state(name)["ExitCode"] == 137
    docker("rm", name)
    _assert_nothing_left(docker, inspected["Id"], before)
