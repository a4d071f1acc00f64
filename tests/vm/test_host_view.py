"""What is seen of a container by those who enter the mount namespace of its process."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cloche.host.view import GUEST_ONLY
from engine.dockerd import wait_until
from engine.patience import PATIENCE_SECONDS

from . import host
from .bundles import Bundle
from .runtime import Container, Runtime
from .test_pods import joining


def look(container: Container, *argv: str) -> list[str]:
    """The lines that *argv* prints in the mount namespace of *container*'s process."""
    # Not the host's programs: what is looked at may hold none of them.
    enter = ["nsenter", "-t", str(container.pid), "-m", "--", *argv]
    done = subprocess.run(
        enter, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True
    )
    return done.stdout.split()


def processes(container: Container) -> list[str]:
    """The folders of processes in /proc."""
    return [name for name in look(container, "/bin/ls", "/proc") if name.isdigit()]


@pytest.fixture(params=["own VM", "member"])
def container(
    request: pytest.FixtureRequest, cloche: Runtime, new_bundle: Callable[[], Bundle]
) -> Container:
    """A running container, with a VM of its own and without."""
    first = cloche.start(new_bundle().args("sleep", "1000"))
    if request.param == "own VM":
        return first
    return cloche.start(joining(new_bundle().args("sleep", "1000"), first, "network"))


def test_many_processes(container: Container) -> None:
    """However many there are, whoever looks does the container no harm."""
    container.sh(
        "exec >/dev/null 2>&1; i=0; while [ $i -lt 500 ]; do sleep 1000 & i=$((i+1)); done"
    )
    assert len(processes(container)) >= 500
    assert container.status == "running"


def test_a_guest_that_does_not_answer(cloche: Runtime, container: Container) -> None:
    """Whoever looks waits for seconds, and signals are heard meanwhile."""
    wait_until(lambda: processes(container) == ["1"], "it is shown, as it is after the start")
    first = min(path.name for path in cloche.root.iterdir())
    qemu = host.qemu_of(cloche.root, first)
    os.kill(qemu, signal.SIGSTOP)
    try:
        assert processes(container) == ["1"]
    finally:
        os.kill(qemu, signal.SIGCONT)
    assert container.status == "running"


def test_long_odd_command_lines(container: Container) -> None:
    """A full answer, each byte of which takes six in JSON."""
    odd = "$(head -c 900 /dev/zero | tr '\\0' '\\1')"
    loop = f"i=0; while [ $i -lt 60 ]; do sh -c 'sleep 1000; :' {odd} & i=$((i+1)); done"
    container.sh(f"exec >/dev/null 2>&1; {loop}")
    shown = container.runtime("ps", container.id).lines
    assert len(shown) > 50


def test_the_guest_sees_nothing_of_it(cloche: Runtime, bundle: Bundle, data: Path) -> None:
    """What is mounted for those who look is not mounted in the files that the guest has."""
    bundle.mount("/data", "bind", data, "rbind").mount("/data/sub", "tmpfs")
    container = cloche.start(bundle)
    found = ["file", "sub"]
    wait_until(lambda: look(container, "/bin/ls", "/data") == found, "the volume is shown")
    assert look(container, "/bin/ls", "/data/sub") == []
    mounts = Path(f"/proc/{container.pid}/mountinfo").read_text()
    share = f"{cloche.root / container.id}/share/"
    points = [line.split()[4] for line in mounts.splitlines() if GUEST_ONLY in line]
    assert [point for point in points if point.startswith(share)] == []
