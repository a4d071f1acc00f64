"""`--device` with a block device of the host, a loop device here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vm.disks import SIZE, Disk

from .client import Docker
from .image import IMAGE


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of zeroes."""
    disk = Disk(tmp_path / "disk.img")
    yield disk
    disk.detach()


def test_a_disk_is_read_and_written(docker: Docker, disk: Disk) -> None:
    """What the container writes to the node is on the device."""
    script = "blockdev --getsize64 /dev/xvda; printf written | dd of=/dev/xvda 2>/dev/null"
    flag = f"--device={disk.path}:/dev/xvda"
    assert docker.run(flag, IMAGE, "sh", "-c", script).output == str(SIZE)
    with open(disk.path, "rb") as device:
        assert device.read(7) == b"written"


def test_a_disk_that_may_only_be_read(docker: Docker, disk: Disk) -> None:
    """`:r` at the end of the flag."""
    flag = f"--device={disk.path}:/dev/xvda:r"
    script = "head -c 4 /dev/xvda | wc -c; echo x >/dev/xvda"
    result = docker.run(flag, IMAGE, "sh", "-c", script, code=1)
    assert result.output == "4"
    assert "not permitted" in result.stderr
    assert disk.file.read_bytes()[:2] == b"\0\0"


def test_a_privileged_container_has_none_of_the_hosts_disks(docker: Docker, disk: Disk) -> None:
    """Under cloche; with a shared kernel it has them all."""
    if docker.runtime != "cloche":
        pytest.skip("a container of a shared kernel sees the host's disks")
    script = f"cat {disk.path} | wc -c; ls /sys/block | grep -c ^vd"
    assert docker.run("--privileged", IMAGE, "sh", "-c", script).output.split() == ["0", "2"]
