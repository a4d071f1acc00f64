"""systemd as a container's first process: podman knows it by its name, or is told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from engine.dockerd import wait_until
from engine.systemd_root import add_systemd

from .client import Podman
from .scene import Scene, run

IMAGE = "localhost/systemd"


@pytest.fixture(scope="module")
def image(podman_scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image that starts systemd."""
    folder = tmp_path_factory.mktemp("systemd")
    root = folder / "rootfs"
    source = podman_scene.directory / "rootfs"
    subprocess.run(["cp", "-a", str(source), str(root)], check=True)
    add_systemd(root)
    archive = folder / "rootfs.tar"
    subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
    run(podman_scene, "import", "--change", 'CMD ["/sbin/init"]', str(archive), IMAGE)
    return IMAGE


@pytest.mark.parametrize("flags", [(), ("--systemd=always",)], ids=["by-name", "always"])
def test_systemd_comes_up_and_goes_down(
    podman: Podman, image: str, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    name = podman.start(*flags, "-v", f"{tmp_path}:/stopped", image)

    def is_up() -> bool:
        return podman("exec", name, "cat", "/run/hello", code=None).output == "up"

    wait_until(is_up, "the service runs")
    assert podman("exec", name, "systemctl", "is-active", "hello.service").output == "active"
    groups = podman("exec", name, "ls", "/sys/fs/cgroup/system.slice").output
    assert "hello.service" in groups
    # The end is systemd's own: it has stopped its services before.
    podman("stop", "--time", "30", name)
    assert (tmp_path / "hello").read_text() == "down\n"
    assert podman("inspect", "--format", "{{.State.ExitCode}}", name).output == "0"
