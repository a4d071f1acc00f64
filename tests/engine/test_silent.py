"""A guest that does not answer: nothing that docker does waits for it for long."""

from __future__ import annotations

import os
import signal

import pytest

from .client import Docker
from .dockerd import wait_until
from .host import qemu_of
from .image import IMAGE
from .patience import PATIENCE_SECONDS

pytestmark = pytest.mark.vm_only


def halt(docker: Docker, container: str) -> int:
    """Stop a container's QEMU; its process id."""
    qemu = qemu_of(docker.state(container)["Pid"])
    os.kill(qemu, signal.SIGSTOP)
    return qemu


def said(docker: Docker, *command: str) -> str:
    """What a command that fails says, be it on stdout (`exec`) or on stderr."""
    result = docker(*command, code=None)
    assert result.code != 0
    return result.output + result.stderr


@pytest.fixture
def halted(docker: Docker) -> str:
    """A container whose QEMU is stopped."""
    name = docker.start(IMAGE, "sleep", "1000")
    halt(docker, name)
    return name


def test_what_asks_the_guest_says_why_it_fails(docker: Docker, halted: str) -> None:
    for command in (("exec", halted, "true"), ("pause", halted), ("top", halted)):
        assert "its guest is silent: no answer for " in said(docker, *command)
    assert docker.state(halted)["Running"] is True


def test_stop(docker: Docker, halted: str) -> None:
    stop = docker.popen("stop", "-t", "2", halted)
    assert docker.state(halted)["Status"] in ("running", "exited")  # inspect does not wait for it
    stop.communicate(timeout=PATIENCE_SECONDS)
    assert stop.returncode == 0
    assert (docker.state(halted)["Status"], docker.state(halted)["ExitCode"]) == ("exited", 137)
    docker("rm", halted)


def test_stop_while_a_command_waits(docker: Docker, halted: str) -> None:
    waiting = docker.popen("exec", halted, "true")
    docker("stop", "-t", "2", halted)
    waiting.communicate(timeout=PATIENCE_SECONDS)
    assert docker.state(halted)["Running"] is False


@pytest.mark.parametrize("command", [("kill",), ("rm", "-f")], ids=" ".join)
def test_kill_and_rm(docker: Docker, halted: str, command: tuple[str, ...]) -> None:
    docker(*command, halted)
    if command == ("kill",):
        wait_until(lambda: docker.state(halted)["Running"] is False, "it has ended")
    else:
        assert "No such" in docker("inspect", halted, code=1).stderr


def test_one_that_goes_on(docker: Docker) -> None:
    name = docker.start(IMAGE, "sleep", "1000")
    qemu = halt(docker, name)
    assert "its guest is silent" in said(docker, "exec", name, "true")
    os.kill(qemu, signal.SIGCONT)
    wait_until(lambda: docker("exec", name, "true", code=None).code == 0, "it is back")
    docker("pause", name)
    docker("unpause", name)
    assert docker.sh(name, "echo fine") == "fine"
