"""Out-of-memory events on hosts with cgroup v2: in a guest, whose kernel has nothing else."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from .bundles import Bundle
from .runtime import Runtime

REPOSITORY = Path(__file__).resolve().parents[2]
SCENE = "tests/host/oom_scene.py"


def test_event_on_cgroup_v2(cloche: Runtime, bundle: Bundle) -> None:
    python = os.path.realpath(sys.executable)
    bundle.args(python, f"/repository/{SCENE}", "scene", "10")
    bundle.process["env"].append("PYTHONPATH=/repository/src")
    bundle.capabilities("CAP_IPC_LOCK", "CAP_SYS_RESOURCE")
    # The host's Python with its libraries; the container's own busybox is not needed.
    for folder in ("/usr", "/lib", "/lib64"):
        bundle.mount(folder, "bind", os.path.realpath(folder), "rbind", "ro")
    bundle.mount("/repository", "bind", REPOSITORY, "rbind", "ro")
    bundle.mount("/tmp", "tmpfs")
    bundle.without_mount("/sys/fs/cgroup").mount("/sys/fs/cgroup", "cgroup", "cgroup", "rw")
    found = json.loads(cloche.run(bundle).stdout)
    assert found["unified"]
    assert found["told"] == [True, True], found
    assert found["events"] == 2
    assert found["vm goes on"]
