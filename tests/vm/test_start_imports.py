"""What a healthy `run` imports: each module there costs every start 0.1 to 0.4 ms."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from unit.test_imports import BARE, HEAVY

from .bundles import Bundle
from .runtime import Runtime, new_id

# What a start needs, by package. What only some containers need is imported where one does;
# whoever adds to this measures what it costs, in interleaved runs.
NEEDED = {
    "base": (
        "descriptors errors fastjson files kinds limits lines loop msgpack quick syscalls text "
        "typed"
    ),
    "cli": ("create flags handles log main"),
    "guest": ("agent_binary guest"),
    "heart": (
        "agent bringup cleanup container control greeting launch machine parent process pulse "
        "sandbox signals stdio streams supervisor terminal"
    ),
    "host": ("cgroup ipv6 share view"),
    "model": (
        "capabilities cgroup cgroup_mounts config cpus device_filter devices disks "
        "environment host_cgroup memory_policy mounts oci oci_linux oci_vm plan plan_mounts "
        "problems rlimits scheduling seccomp seccomp_profile source_flags state texts users "
        "validate validate_mounts"
    ),
    "vmm": ("accel argv console frozen integrity launch preload shape template variant vm"),
    "wire": ("answers frames messages qmp"),
}
# What comes by and by: what waits a second for its guest, on a busy machine, needs more.
LATER = {
    "cloche.base.cputime",
    "cloche.heart.view",
    "cloche.host.proc_view",
    "cloche.host.proc_files",
}
RUN = """
import sys
sys.path[:0] = {path!r}
import cloche.heart.bringup
from cloche.cli.main import main

supervise = cloche.heart.bringup.supervise

def noting(request, channel):
    status = supervise(request, channel)
    with open({file!r}, "w") as file:
        file.write(" ".join(sys.modules))
    return status

cloche.heart.bringup.supervise = noting
sys.exit(main({words!r}))
"""


def test_a_run_imports_what_it_needs(cloche: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """Both processes: the supervisor has what its caller had, and more."""
    bundle.args("true").save()
    cloche("run", "--bundle", bundle.path, new_id())  # whatever is made once is there then
    file = tmp_path / "modules"
    words = ["--root", str(cloche.root), "run", "--bundle", str(bundle.path), new_id()]
    path = [entry for entry in sys.path if entry]
    code = RUN.format(path=path, file=str(file), words=words)
    subprocess.run([*BARE, "-c", code], env=cloche.env, check=True, stdin=subprocess.DEVNULL)
    found = {*file.read_text().split()}
    assert not found & {*HEAVY, "termios", "ctypes", "heapq", "datetime"}
    needed = {f"cloche.{package}.{name}" for package in NEEDED for name in NEEDED[package].split()}
    ours = {name for name in found if name.count(".") == 2 and name.startswith("cloche.")}
    assert ours - needed - LATER == set()
