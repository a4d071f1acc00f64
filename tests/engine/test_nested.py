"""Docker in Docker: dockerd in a privileged container, with the guest's own kernel below it."""

from __future__ import annotations

import pytest

from . import nested
from .client import Docker
from .dockerd import wait_until
from .patience import PATIENCE_SECONDS

pytestmark = pytest.mark.vm_only
START_SECONDS = 3 * PATIENCE_SECONDS
"""A guest without KVM starts Docker in half a minute, on a machine that has nothing else to do."""


def start(docker: Docker, *options: str, flags: tuple[str, ...] = ()) -> str:
    """A container in which Docker is up."""
    name = docker.start(
        "--privileged", "--tmpfs", "/run:exec", *options, nested.IMAGE, "sh", "/start", *flags
    )

    def is_up() -> bool:
        assert docker.state(name)["Running"], docker("logs", name).output
        return "ready" in docker("logs", name).output

    wait_until(is_up, "Docker is up inside", START_SECONDS)
    return name


@pytest.fixture(scope="module", autouse=True)
def image(shared: Docker, tmp_path_factory: pytest.TempPathFactory) -> None:
    """An image with Docker in it."""
    nested.build_image(shared, tmp_path_factory.mktemp("nested"))


def inside(docker: Docker, name: str, *words: str) -> str:
    """The output of ``docker WORDS`` in the container *name*."""
    return docker("exec", name, "docker", *words).output


def test_containers_in_a_container(docker: Docker) -> None:
    """With layers, limits, a network of their own and published ports."""
    name = start(docker, "--tmpfs", "/var/lib/docker:exec", flags=("-s", "overlay2"))
    script = "cat /sys/fs/cgroup/memory.max; ip route; echo $((6*7))"
    output = inside(docker, name, "run", "--rm", "-m", "64m", "inner", "sh", "-c", script)
    assert output.splitlines()[0] == str(64 << 20)
    assert "default via 172.17.0.1" in output
    assert output.splitlines()[-1] == "42"
    inside(docker, name, "run", "-d", "-p", "8080:80", "inner", "httpd", "-f", "-h", "/bin")
    page = "until wget -qO /page http://127.0.0.1:8080/busybox; do sleep 1; done; cmp /page"
    docker("exec", name, "sh", "-c", f"{page} /bin/busybox")
    docker("exec", name, "sh", "-c", "iptables -w -t nat -S DOCKER | grep -w 8080")


def test_on_the_containers_own_root(docker: Docker) -> None:
    """A folder of the host: Docker takes overlays where these are possible on it, else copies."""
    name = start(docker)
    assert inside(docker, name, "run", "--rm", "inner", "echo", "hello") == "hello"
    assert inside(docker, name, "info", "--format", "{{.Driver}}") in ("overlay2", "vfs")
