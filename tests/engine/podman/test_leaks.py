"""After `podman rm -f` nothing of a container is left on the host."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from engine.dockerd import wait_until
from engine.leftovers import processes_of

from .client import Podman
from .scene import IMAGE, cgroup_folders, paths_with


def _traces(podman: Podman, container_id: str) -> dict[str, list[str]]:
    folders = [Path("/run/cloche"), podman.scene.directory]
    return {
        "processes": processes_of(container_id),
        "mounts": [line for line in podman.scene.mounts() if container_id in line],
        "files": paths_with(container_id, folders),
        "cgroups": cgroup_folders(container_id),
    }


@pytest.mark.parametrize("network", ["none", "bridge"])
@pytest.mark.parametrize("how", ["forced", "stopped", "--rm"])
def test_nothing_left(podman: Podman, network: str, how: str) -> None:
    """No process, mount, cgroup, file or interface outlives it."""
    before = podman.scene.interfaces()
    flags = ["--rm"] if how == "--rm" else []
    name = podman.start(f"--network={network}", *flags, IMAGE, "sleep", "1000")
    podman("exec", "-d", name, "sleep", "1000")
    container_id = podman.inspect(name)["Id"]
    running = _traces(podman, container_id)
    assert all(running[kind] for kind in ("processes", "files", "cgroups")), running
    if how == "stopped":
        podman("stop", "-t", "0", name)
        podman("rm", name)
    else:
        podman(*(("rm", "-f", "-t", "0") if how == "forced" else ("kill",)), name)

    def left() -> dict[str, list[str]]:
        # The bridge of a network stays; what the container was tied to it with does not.
        new = podman.scene.interfaces() - before - {"podman0"}
        return {**_traces(podman, container_id), "interfaces": sorted(new)}

    with contextlib.suppress(AssertionError):
        wait_until(lambda: not any(left().values()), "nothing is left")
    assert not any(left().values()), left()
