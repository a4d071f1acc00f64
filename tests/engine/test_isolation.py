"""A kernel per container: what a container does to its kernel, no other container notices."""

from __future__ import annotations

import time

import pytest

from .client import Docker
from .dockerd import wait_until
from .host import boot_id, kernel_release
from .image import IMAGE

BOMB = "bomb() { bomb | bomb & }; echo lit; bomb; sleep 1000"
CRASH = "echo about to; sync; echo c > /proc/sysrq-trigger; sleep 1000; echo still here"
READ_BOOT_ID = "cat /proc/sys/kernel/random/boot_id"

pytestmark = pytest.mark.vm_only


def _assert_own_kernel(docker: Docker, container: str) -> None:
    """Guard of the tests that crash kernels: never the host's."""
    assert docker.sh(container, READ_BOOT_ID) != boot_id(), "shares the host's kernel: stopped"


@pytest.fixture
def neighbour(docker: Docker) -> str:
    """A container that has to survive whatever happens beside it."""
    return docker.start(IMAGE, "sleep", "1000")


def test_kernel_of_its_own(docker: Docker) -> None:
    """The container's kernel is not the host's."""
    assert docker.run(IMAGE, "uname", "-r").output != kernel_release()


def test_boot_of_its_own(docker: Docker, neighbour: str) -> None:
    """No two containers, and no container and the host, run the same boot of a kernel."""
    one, two = (
        docker.sh(neighbour, READ_BOOT_ID),
        docker.run(IMAGE, "sh", "-c", READ_BOOT_ID).output,
    )
    assert len({one, two, boot_id()}) == 3


def test_random_numbers_differ(docker: Docker, neighbour: str) -> None:
    """Containers that were started from one saved machine do not share their random numbers."""
    read = "head -c 16 /dev/urandom | od -An -tx1"
    assert docker.sh(neighbour, read) != docker.run(IMAGE, "sh", "-c", read).output


def test_clock_is_right(docker: Docker) -> None:
    """The container's clock is the host's, though its machine was saved some time ago."""
    before = time.time()
    guest = int(docker.run(IMAGE, "date", "+%s").output)
    assert int(before) <= guest <= time.time() + 1


def test_fork_bomb(docker: Docker, neighbour: str) -> None:
    """A fork bomb without any limit on processes stays in its container, which can be removed."""
    bomb = docker.start("--memory", "256m", IMAGE, "sleep", "1000")
    _assert_own_kernel(docker, bomb)
    docker("exec", "-d", bomb, "sh", "-c", BOMB)
    for number in range(3):
        assert docker.sh(neighbour, f"echo alive-{number}") == f"alive-{number}"
    docker("rm", "-f", bomb)
    assert docker.sh(neighbour, "echo alive") == "alive"


def test_kernel_crash(docker: Docker, neighbour: str) -> None:
    """A crash of the container's kernel ends that container and no other; the log tells of it."""
    options = ("--security-opt", "systempaths=unconfined")
    crash = docker.start(*options, IMAGE, "sleep", "1000")
    _assert_own_kernel(docker, crash)
    docker("exec", "-d", crash, "sh", "-c", CRASH)
    wait_until(lambda: not docker.state(crash)["Running"], "the container has ended", seconds=30)
    assert docker.state(crash)["ExitCode"] != 0
    assert "Kernel panic - not syncing: sysrq triggered crash" in docker("logs", crash).stderr
    assert docker.sh(neighbour, "echo alive") == "alive"
    docker("rm", crash)


def test_power_off(docker: Docker, neighbour: str) -> None:
    """A guest that is reset under its container ends the container, and docker learns of it."""
    options = ("--security-opt", "systempaths=unconfined")
    name = docker.start(*options, IMAGE, "sleep", "1000")
    _assert_own_kernel(docker, name)
    docker("exec", "-d", name, "sh", "-c", "echo b > /proc/sysrq-trigger")
    wait_until(lambda: not docker.state(name)["Running"], "the container has ended", seconds=30)
    assert docker.state(name)["ExitCode"] != 0
    assert "restarted or switched itself off" in docker("logs", name).stderr
    assert docker.sh(neighbour, "echo alive") == "alive"


def test_memory_default_is_own(docker: Docker) -> None:
    """Without ``--memory`` a container sees a machine of its own size, not the host's memory."""
    total = int(docker.run(IMAGE, "awk", "/MemTotal/ { print $2 }", "/proc/meminfo").output)
    assert total < 2048 * 1024
