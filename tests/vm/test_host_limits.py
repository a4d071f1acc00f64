"""What bounds the VM as a whole: files of its cgroup on the host, the same that runc writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloche.host.cgroup import hierarchies

from .bundles import Bundle
from .runtime import Container, Runtime, new_id


def disk() -> str:
    """A disk of this machine that can be throttled, as major:minor."""
    for device in sorted(Path("/sys/block").iterdir()):
        if (device / "device").exists():
            return (device / "dev").read_text().strip()
    pytest.skip("this machine has no disk")


def host_files(path: str, *names: str) -> dict[str, str]:
    """What the files of the cgroup *path* say on the host, as far as it has them."""
    found = {}
    for hierarchy in hierarchies():
        for name in names:
            file = Path(hierarchy, path, name)
            if file.exists():
                found[name] = file.read_text().strip()
    return found


def resources() -> dict[str, Any]:
    """Limits that the host carries out."""
    major, minor = map(int, disk().split(":"))
    rate = [{"major": major, "minor": minor, "rate": 1 << 20}]
    return {
        "cpu": {"cpus": "0", "mems": "0", "shares": 700},
        "blockIO": {
            "weight": 300,
            "throttleReadBpsDevice": rate,
            "throttleWriteBpsDevice": rate,
            "throttleReadIOPSDevice": rate,
            "throttleWriteIOPSDevice": rate,
        },
    }


V1 = (
    *("cpuset.cpus", "cpuset.mems", "cpu.shares", "blkio.bfq.weight", "blkio.weight"),
    *(f"blkio.throttle.{name}_{kind}_device" for name in ("read", "write") for kind in ("bps",)),
    *(f"blkio.throttle.{name}_iops_device" for name in ("read", "write")),
)
V2 = ("cpu.weight", "io.weight", "io.bfq.weight", "io.max")


def test_the_hosts_cgroup_has_what_runc_writes(
    cloche: Runtime, runc: Runtime, bundle: Bundle
) -> None:
    bundle.linux["resources"] = resources()
    found = []
    for runtime in (runc, cloche):
        path = f"cloche-tests/{new_id()}"
        bundle.linux["cgroupsPath"] = f"/{path}"
        container = runtime.start(bundle)
        found.append(host_files(path, *V1, *V2))
        container.end()
        runtime("delete", container.id)
    assert found[1] == found[0]
    assert found[1]["cpuset.cpus"] == "0"
    assert f"{disk()} 1048576" in found[1].values() or "io.max" in found[1]
    assert [each for each in cloche.messages("warning") if each.startswith("$")] == []


def test_an_update_changes_the_hosts_cgroup(cloche: Runtime, bundle: Bundle) -> None:
    path = f"cloche-tests/{new_id()}"
    bundle.linux["cgroupsPath"] = f"/{path}"
    container = cloche.start(bundle)
    cloche("update", "--resources", "-", container.id, data=json.dumps(resources()).encode())
    found = host_files(path, *V1)
    assert found["cpuset.cpus"] == "0"
    assert found["cpu.shares"] == "700"
    assert found["blkio.throttle.read_bps_device"] == f"{disk()} {1 << 20}"
    cloche("update", "--cpu-share", "300", "--blkio-weight", "200", container.id)
    found = host_files(path, *V1)
    assert found["cpu.shares"] == "300"
    assert "200" in (found.get("blkio.weight", ""), found.get("blkio.bfq.weight", ""))


@pytest.mark.parametrize(
    ("limits", "path"),
    [
        ({"cpu": {"cpus": "7777"}}, "$.linux.resources.cpu.cpus"),
        ({"cpu": {"mems": "777"}}, "$.linux.resources.cpu.mems"),
        ({"blockIO": {"leafWeight": 10}}, "$.linux.resources.blockIO.leafWeight"),
        (
            {"blockIO": {"throttleReadBpsDevice": [{"major": 4000, "minor": 1, "rate": 5}]}},
            "$.linux.resources.blockIO.throttleReadBpsDevice[0]",
        ),
    ],
    ids=["cpus", "mems", "leaf", "no disk"],
)
def test_what_the_host_does_not_have(
    cloche: Runtime, bundle: Bundle, limits: dict[str, Any], path: str
) -> None:
    bundle.linux["resources"] = limits
    message = cloche.fails("create", "--bundle", bundle.save(), cloche.new_id())
    assert f"{path}: " in message
    assert cloche.leftovers() == []


def test_an_update_that_the_host_refuses_changes_nothing(idle: Container) -> None:
    limits = {"cpu": {"mems": "777"}, "pids": {"limit": 77}}
    data = json.dumps(limits).encode()
    message = idle.runtime.fails("update", "-r", "-", idle.id, data=data)
    assert "$.cpu.mems: " in message
    assert idle.sh("cat /sys/fs/cgroup/pids.max").output == "max"


def test_processors_of_the_host(cloche: Runtime, bundle: Bundle) -> None:
    bundle.linux["resources"] = {"cpu": {"cpus": "0-1"}}
    container = cloche.start(bundle)
    assert container.sh("nproc").output == "2"
    cloche("update", "--cpuset-cpus", "1", container.id)
    assert container.sh("cat /sys/fs/cgroup/cpuset.cpus; nproc").lines == ["0", "1"]
    qemu = Path(f"/proc/{container.pid}/status").read_text()
    assert "Cpus_allowed_list:\t1\n" in qemu


def test_swappiness(cloche: Runtime, bundle: Bundle) -> None:
    bundle.linux["resources"] = {"memory": {"swappiness": 17}}
    path = f"cloche-tests/{new_id()}"
    bundle.linux["cgroupsPath"] = f"/{path}"
    cloche.start(bundle)
    found = host_files(path, "memory.swappiness")
    if found:
        assert found == {"memory.swappiness": "17"}
    else:  # cgroup v2
        assert "$.linux.resources.memory.swappiness: " in "".join(cloche.messages("warning"))
