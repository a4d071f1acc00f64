"""A guest that does not answer, under podman: stop, kill and rm always win."""

from __future__ import annotations

import os
import signal

import pytest

from engine.dockerd import wait_until
from engine.host import qemu_of

from .client import Podman
from .scene import IMAGE


@pytest.fixture
def halted(podman: Podman) -> str:
    """A container whose QEMU is stopped."""
    name = podman.start(IMAGE, "sleep", "1000")
    os.kill(qemu_of(podman.inspect(name)["State"]["Pid"]), signal.SIGSTOP)
    return name


def test_exec(podman: Podman, halted: str) -> None:
    assert "its guest is silent: no answer for " in podman("exec", halted, "true", code=None).stderr


def test_stop(podman: Podman, halted: str) -> None:
    podman("stop", "-t", "2", halted)
    wait_until(lambda: podman.inspect(halted)["State"]["Status"] == "exited", "it has ended")
    podman("rm", halted)


@pytest.mark.parametrize("command", [("kill",), ("rm", "-f")], ids=" ".join)
def test_kill_and_rm(podman: Podman, halted: str, command: tuple[str, ...]) -> None:
    podman(*command, halted)
    if command == ("kill",):
        wait_until(lambda: podman.inspect(halted)["State"]["Status"] == "exited", "ended")
    else:
        assert podman("inspect", halted, code=None).code != 0
