"""Resource options of docker: what the container's cgroup says, and the host's of its process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloche.host.cgroup import hierarchies

from .client import Docker
from .image import IMAGE

MIB = 1 << 20


def inside(docker: Docker, name: str, v2: str, v1: str) -> str:
    """A file of the container's cgroup, by its name in cgroup *v2* or *v1*, whichever there is."""
    return docker.sh(name, f"cat /sys/fs/cgroup/{v2} 2>/dev/null || cat /sys/fs/cgroup/{v1}")


def on_the_host(docker: Docker, name: str, *files: str) -> list[str]:
    """What those of *files* say that the host's cgroups of the container's process have."""
    lines = Path(f"/proc/{docker.state(name)['Pid']}/cgroup").read_text().splitlines()
    places = {line.split(":", 2)[2].lstrip("/") for line in lines}
    paths = [
        Path(folder, place, file) for folder in hierarchies() for place in places for file in files
    ]
    return [path.read_text().strip() for path in paths if path.exists()]


def disk() -> Path:
    """A disk of this machine that can be throttled, with its node in /dev."""
    for device in sorted(Path("/sys/block").iterdir()):
        node = Path("/dev", device.name)
        if (device / "device").exists() and node.is_block_device():
            return node
    pytest.skip("this machine has no disk")


@pytest.mark.parametrize(("cpus", "count"), [("0", "1"), ("0-1", "2")])
def test_cpuset(docker: Docker, cpus: str, count: str) -> None:
    """``--cpuset-cpus`` holds on the host, and the container sees as many processors."""
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one processor cannot be divided")
    name = docker.start("--cpuset-cpus", cpus, IMAGE, "sleep", "1000")
    assert docker.sh(name, "nproc") == count
    pid = docker.state(name)["Pid"]
    assert f"Cpus_allowed_list:\t{cpus}\n" in Path(f"/proc/{pid}/status").read_text()


def test_cpuset_is_updated(docker: Docker) -> None:
    """``update --cpuset-cpus`` moves a running container."""
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one processor cannot be divided")
    name = docker.start("--cpuset-cpus", "0-1", IMAGE, "sleep", "1000")
    docker("update", "--cpuset-cpus", "1", name)
    assert docker.sh(name, "nproc") == "1"
    pid = docker.state(name)["Pid"]
    assert "Cpus_allowed_list:\t1\n" in Path(f"/proc/{pid}/status").read_text()


def test_cpu_shares(docker: Docker) -> None:
    """``--cpu-shares`` is a weight in the container's cgroup, and in the host's."""
    name = docker.start("--cpu-shares", "512", IMAGE, "sleep", "1000")
    assert inside(docker, name, "cpu.weight", "cpu/cpu.shares") in ("20", "512")
    assert on_the_host(docker, name, "cpu.shares", "cpu.weight") in (["512"], ["20"])


def test_memory_reservation(docker: Docker) -> None:
    """``--memory-reservation`` is the part that is reclaimed last."""
    name = docker.start("--memory-reservation", "32m", IMAGE, "sleep", "1000")
    found = inside(docker, name, "memory.low", "memory/memory.soft_limit_in_bytes")
    assert found == str(32 * MIB)


def test_memory_swap(docker: Docker) -> None:
    """``--memory-swap`` limits memory and swap together."""
    flags = ("--memory", "64m", "--memory-swap", "96m")
    name = docker.start(*flags, IMAGE, "sleep", "1000")
    found = inside(docker, name, "memory.swap.max", "memory/memory.memsw.limit_in_bytes")
    assert found in (str(32 * MIB), str(96 * MIB))
    docker("update", "--memory", "48m", "--memory-swap", "48m", name)
    found = inside(docker, name, "memory.swap.max", "memory/memory.memsw.limit_in_bytes")
    assert found in ("0", str(48 * MIB))


def test_oom_kill_disable(docker: Docker) -> None:
    """``--oom-kill-disable`` is taken; cgroup v2, which a guest has, has no such thing."""
    name = docker.start("--oom-kill-disable", "--memory", "64m", IMAGE, "sleep", "1000")
    assert docker.sh(name, "echo runs") == "runs"


def test_blkio_weight(docker: Docker) -> None:
    """``--blkio-weight`` is on the host, where docker finds that the host can do it."""
    result = docker(*docker.run_args("-d", "--blkio-weight", "300", IMAGE, "sleep", "1000"))
    files = ("blkio.weight", "blkio.bfq.weight", "io.bfq.weight", "io.weight")
    if "discarded" in result.stderr:
        assert "300" not in " ".join(on_the_host(docker, docker.last, *files))
    else:
        assert "300" in " ".join(on_the_host(docker, docker.last, *files[:3]))


@pytest.mark.parametrize(
    ("option", "rate", "file"),
    [
        ("--device-read-bps", "1mb", "blkio.throttle.read_bps_device"),
        ("--device-write-bps", "1mb", "blkio.throttle.write_bps_device"),
        ("--device-read-iops", "70", "blkio.throttle.read_iops_device"),
        ("--device-write-iops", "70", "blkio.throttle.write_iops_device"),
    ],
)
def test_block_device_rates(docker: Docker, option: str, rate: str, file: str) -> None:
    """``--device-read-bps`` and the like limit what the process on the host does to a disk."""
    node = disk()
    name = docker.start(option, f"{node}:{rate}", IMAGE, "sleep", "1000")
    number = os.stat(node).st_rdev
    wanted = str(MIB) if rate == "1mb" else rate
    (found,) = on_the_host(docker, name, file, "io.max")
    assert f"{os.major(number)}:{os.minor(number)}" in found
    assert wanted in found


def test_device_rules(docker: Docker) -> None:
    """A device that no rule names cannot be opened; ``--device-cgroup-rule`` names one."""
    script = "mknod /kmsg c 1 11; head -c 1 /kmsg >/dev/null && echo opened"
    flags = ("--cap-add", "SYSLOG", IMAGE, "sh", "-c", script)
    result = docker.run(*flags, code=None)
    assert "opened" not in result.output
    assert "Operation not permitted" in result.stderr
    assert docker.run("--device-cgroup-rule", "c 1:11 r", *flags).output == "opened"


def test_device_rules_of_privileged_containers(docker: Docker, all_capabilities: int) -> None:
    """``--privileged`` allows every device there is."""
    assert all_capabilities
    script = "mknod /kmsg c 1 11; head -c 1 /kmsg >/dev/null && echo opened"
    assert docker.run("--privileged", IMAGE, "sh", "-c", script).output == "opened"
