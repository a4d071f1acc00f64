"""systemd as the first process, the way recipes for Docker have it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .client import Docker
from .dockerd import wait_until
from .image import TOOL
from .systemd_root import add_systemd

IMAGE = "systemd"


@pytest.fixture
def image(docker: Docker, tmp_path: Path) -> str:
    """An image that starts systemd."""
    root = tmp_path / "rootfs"
    subprocess.run([str(TOOL), "rootfs", str(root)], check=True, capture_output=True)
    add_systemd(root)
    archive = tmp_path / "rootfs.tar"
    subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
    docker("import", "--change", 'CMD ["/sbin/init"]', str(archive), IMAGE)
    return IMAGE


@pytest.mark.vm_only
def test_systemd_in_a_privileged_container(docker: Docker, image: str) -> None:
    """The host's cgroups stay out of its reach: on v1 runc would hand them over."""
    volume = "/sys/fs/cgroup:/sys/fs/cgroup:ro"
    flags = ("--privileged", "--tmpfs", "/run", "-e", "container=docker", "-v", volume)
    container = docker.start(*flags, image)

    def is_up() -> bool:
        return docker("exec", container, "cat", "/run/hello", code=None).output == "up"

    wait_until(is_up, "the service runs")
    found = docker("exec", container, "find", "/sys/fs/cgroup", "-name", "hello.service")
    assert found.output == "/sys/fs/cgroup/system.slice/hello.service"
    assert docker("exec", container, "systemctl", "is-active", "hello.service").output == "active"
