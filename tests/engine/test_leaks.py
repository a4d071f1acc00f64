"""After a container is gone, nothing of it is left on the host."""

from __future__ import annotations

import os
import signal

import pytest

from .client import Docker
from .dockerd import parent_of, wait_until
from .image import IMAGE
from .leftovers import assert_nothing_left, interfaces, traces


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
    before = interfaces(docker)
    name = docker.start(*options, IMAGE, "sleep", "1000")
    docker("exec", "-d", name, "sleep", "1000")
    container_id: str = docker.inspect(name)["Id"]
    running = traces(docker, container_id)
    assert running["processes"], "the search finds nothing of a running container"
    if how == "stop":
        docker("stop", name)
        docker("rm", "-v", name)
    else:
        docker("rm", "-f", "-v", name)
    assert_nothing_left(docker, container_id, before)


def test_nothing_left_of_failed_start(docker: Docker) -> None:
    """The same for a container whose program could not be started."""
    before = interfaces(docker)
    docker(*docker.run_args(IMAGE, "nosuch"), code=127)
    container_id: str = docker.inspect(docker.last)["Id"]
    docker("rm", docker.last)
    assert_nothing_left(docker, container_id, before)


def test_runtime_killed(docker: Docker) -> None:
    """When the process that stands for a container is killed, docker sees an ended container."""
    before = interfaces(docker)
    name = docker.start(IMAGE, "sleep", "1000")
    inspected = docker.inspect(name)
    os.kill(inspected["State"]["Pid"], signal.SIGKILL)
    wait_until(lambda: not docker.state(name)["Running"], "docker sees the end")
    assert docker.state(name)["ExitCode"] == 137
    docker("rm", name)
    assert_nothing_left(docker, inspected["Id"], before)


def test_shim_killed(docker: Docker) -> None:
    """When containerd's shim is killed, the container is ended and can be removed."""
    before = interfaces(docker)
    name = docker.start(IMAGE, "sleep", "1000")
    inspected = docker.inspect(name)
    os.kill(parent_of(inspected["State"]["Pid"]), signal.SIGKILL)
    wait_until(lambda: not docker.state(name)["Running"], "docker sees the end")
    docker("rm", "-f", name)
    assert_nothing_left(docker, inspected["Id"], before)
