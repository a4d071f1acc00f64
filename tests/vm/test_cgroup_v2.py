"""The host's side of cgroups on hosts with v2 alone: in a guest, whose kernel has nothing else."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from .bundles import Bundle
from .runtime import Runtime

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = ("memory.max", "cpu.weight", "cpuset.cpus", "cpuset.mems", "cgroup.controllers")
# A cgroup that hands controllers on has no processes of its own: those of the container move.
ALONE = "mkdir leaf && for pid in $(cat cgroup.procs); do echo $pid > leaf/cgroup.procs; done"


def test_join_and_limits(cloche: Runtime, bundle: Bundle) -> None:
    python = os.path.realpath(sys.executable)
    scene = f"{python} -m tests.host.cgroup_scene pod/box {' '.join(FILES)}"
    bundle.sh(f"cd /sys/fs/cgroup && {ALONE}; cd /repository && {scene}")
    bundle.process["env"].append("PYTHONPATH=/repository/src:/repository:" + ":".join(_packages()))
    for folder in ("/usr", "/lib", "/lib64", *_packages()):
        bundle.mount(folder, "bind", os.path.realpath(folder), "rbind", "ro")
    bundle.mount("/repository", "bind", REPOSITORY, "rbind", "ro")
    bundle.without_mount("/sys/fs/cgroup").mount("/sys/fs/cgroup", "cgroup", "cgroup", "rw")
    found = json.loads(cloche.run(bundle).stdout)
    assert found["places"] == ["0::/pod/box"], found
    files = found["files"]
    assert files["memory.max"] == str(512 << 20)
    assert (files["cpu.weight"], files["cpuset.cpus"], files["cpuset.mems"]) == ("20", "0", "0")
    assert {"cpu", "io", "memory", "pids"} <= {*files["cgroup.controllers"].split()}
    assert (found["bounded"], found["again"], found["warnings"]) == (True, True, [])
    assert found["usage"]["memory"]["usage"]["limit"] == 512 << 20
    assert found["usage"]["pids"] == {"current": 1, "limit": 0}
    assert "total" in found["usage"]["cpu"]["usage"]
    assert found["left"] == []


def _packages() -> list[str]:
    """Where the libraries are that the host's code needs."""
    import msgspec

    return [str(Path(msgspec.__file__).resolve().parents[1])]
