"""A process of its own that joins a cgroup and gets limits there; run as a program.

``cgroup_scene.py PATH FILE…`` prints, as JSON, where the process is then and what the files say. It
runs on the host, and in a guest's container too, where there is cgroup v2 on any machine.
"""

from __future__ import annotations

import json
import os
import select
import sys
from pathlib import Path
from typing import Any

from cloche.base.errors import ClocheError
from cloche.host import cgroup
from cloche.host.usage import vm_usage
from cloche.model.host_cgroup import host_settings
from cloche.model.oci import load_resources

MEMORY = 512 << 20
RESOURCES: dict[str, Any] = {"cpu": {"shares": 512, "cpus": "0", "mems": "0"}}


def play(path: str, names: list[str]) -> dict[str, object]:
    """Join, apply, look."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    try:
        found: dict[str, object] = {"bounded": cgroup.join(path, MEMORY, [pid])}
        found["again"] = cgroup.join(path, MEMORY, [pid])
        settings = host_settings(load_resources(json.dumps(RESOURCES).encode()))
        try:
            found["warnings"] = cgroup.apply(path, settings, "$")
        except ClocheError as error:
            found["error"] = error.message
        found["places"] = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        found["usage"] = vm_usage(path)
        found["files"] = {
            name: Path(folder, path, name).read_text().strip()
            for folder in cgroup.hierarchies()
            for name in names
            if Path(folder, path, name).exists()
        }
    finally:
        os.close(write_end)
        select.select([pidfd], [], [])
        os.waitpid(pid, 0)
    cgroup.remove(path.partition("/")[0])
    found["left"] = [
        folder for folder in cgroup.hierarchies() if Path(folder, path.partition("/")[0]).exists()
    ]
    return found


if __name__ == "__main__":
    print(json.dumps(play(sys.argv[1], sys.argv[2:])))
