"""The host's cgroup of a VM, on whatever this machine has: v1, hybrid or v2."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloche.host import cgroup

from .cgroup_scene import MEMORY, play

FILES = ("memory.limit_in_bytes", "memory.max", "cpu.shares", "cpu.weight", "cpuset.cpus")


def _v2_mount() -> str:
    """Where cgroup v2 is mounted: alone, or beside v1 (hybrid)."""
    for folder in cgroup.hierarchies():
        if os.path.exists(os.path.join(folder, "cgroup.controllers")):
            return folder
    pytest.skip("this machine has no cgroup v2")


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("/cloche-test-{pid}/deep/box", "cloche-test-{pid}/deep/box"),
        ("cloche{pid}-a.slice:pre:box", "cloche{pid}.slice/cloche{pid}-a.slice/pre-box.scope"),
    ],
    ids=["cgroupfs", "systemd"],
)
def test_every_hierarchy_is_joined_and_left(given: str, path: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("cgroups need root")
    path = path.format(pid=os.getpid())
    assert cgroup.relative_path(given.format(pid=os.getpid()), "box") == path
    found = play(path, list(FILES))
    places = found["places"]
    assert isinstance(places, list)
    hierarchies = Path("/proc/self/cgroup").read_text().splitlines()
    assert len(places) == len(hierarchies)
    assert {place.split(":")[2] for place in places} == {f"/{path}"}
    files = found["files"]
    assert isinstance(files, dict)
    assert str(MEMORY) in (files.get("memory.limit_in_bytes"), files.get("memory.max"))
    assert files["cpuset.cpus"] == "0"
    assert files.get("cpu.shares") == "512" or files.get("cpu.weight") == "20"
    assert (found["bounded"], found["again"], found["warnings"]) == (True, True, [])
    assert found["left"] == []


def test_controllers_of_v2_reach_the_lowest_level() -> None:
    if os.geteuid() != 0:
        pytest.skip("cgroups need root")
    mount = Path(_v2_mount())
    top = f"cloche-test-{os.getpid()}"
    controllers = (mount / "cgroup.controllers").read_text()
    try:
        cgroup.join(f"{top}/a/b", MEMORY, [])
        assert (mount / top / "a/b/cgroup.controllers").read_text() == controllers
        assert (mount / top / "a/b/cgroup.procs").read_text() == ""
    finally:
        cgroup.remove(top)
    assert not (mount / top).exists()
