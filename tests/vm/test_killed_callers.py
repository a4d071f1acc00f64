"""SIGKILL for the command in the foreground: what becomes of the process that it stood for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from engine.dockerd import wait_until

from . import host
from .bundles import Bundle
from .runtime import Container, Runtime

BEAT = "while :; do date +%s%N >/shared/beat; sleep 0.1; done"
"""A program that can be seen to live."""

each_runtime = pytest.mark.parametrize("name", ["cloche", "runc"])


@pytest.fixture
def beating(bundle: Bundle, data: Path) -> Bundle:
    """A bundle with a folder in which its programs leave a sign of life."""
    return bundle.mount("/shared", "bind", data, "bind", "rw")


def lives(data: Path) -> bool:
    """Whether another sign comes."""
    beat = data / "beat"
    before = beat.read_text() if beat.exists() else ""
    try:
        # A pause, not a limit: who is to live is asked again (wait_until).
        wait_until(lambda: beat.exists() and beat.read_text() not in ("", before), "a beat", 4)
    except AssertionError:
        return False
    return True


def status(runtime: Runtime, container_id: str) -> str:
    """As `state` tells."""
    found: str = runtime("state", container_id).json()["status"]
    return found


@each_runtime
def test_run_on_a_terminal(
    request: pytest.FixtureRequest, beating: Bundle, data: Path, name: str
) -> None:
    """The terminal goes with it, which the program hears of."""
    runtime: Runtime = request.getfixturevalue(name)
    beating.process["terminal"] = True
    beating.sh(f"trap 'echo hup >/shared/hup; exit' HUP; echo up; {BEAT}")
    container_id = runtime.new_id()
    with runtime.terminal("run", "--bundle", beating.save(), container_id) as terminal:
        terminal.expect("up")
        wait_until(lambda: lives(data), "it goes on")
        os.kill(terminal._pid, signal.SIGKILL)
        wait_until((data / "hup").exists, "the program was told")
        wait_until(lambda: not lives(data), "the program has ended")
        wait_until(lambda: status(runtime, container_id) == "stopped", "the container has, too")
    runtime("delete", container_id)


def test_a_program_that_does_not_care_for_its_terminal(
    cloche: Runtime, beating: Bundle, data: Path
) -> None:
    """It is given some seconds: nobody would ever end it."""
    beating.process["terminal"] = True
    beating.sh(f"trap '' HUP; echo up; {BEAT}")
    container_id = cloche.new_id()
    with cloche.terminal("run", "--bundle", beating.save(), container_id) as terminal:
        terminal.expect("up")
        os.kill(terminal._pid, signal.SIGKILL)
        wait_until(lambda: status(cloche, container_id) == "stopped", "it has been killed")
    assert host.processes(cloche.root) == []


@each_runtime
def test_run_without_a_terminal_leaves_the_container_running(
    request: pytest.FixtureRequest, beating: Bundle, data: Path, name: str
) -> None:
    runtime: Runtime = request.getfixturevalue(name)
    container_id = runtime.new_id()
    null = subprocess.DEVNULL
    command = ("run", "--bundle", beating.sh(BEAT).save(), container_id)
    client = runtime.popen(*command, stdout=null, stderr=null)
    wait_until((data / "beat").exists, "the program runs")
    client.kill()
    client.wait()
    wait_until(lambda: lives(data), "it goes on")
    assert runtime("state", container_id).json()["status"] == "running"
    runtime("delete", "--force", container_id)
    assert not lives(data)


@pytest.mark.parametrize("terminal", [True, False])
@each_runtime
def test_exec(
    request: pytest.FixtureRequest, beating: Bundle, data: Path, name: str, terminal: bool
) -> None:
    """With a terminal it ends; without one runc's goes on, and ours is killed (docs/oci.md)."""
    runtime: Runtime = request.getfixturevalue(name)
    container = runtime.start(beating.args("sleep", "1000"))
    if terminal:
        with runtime.terminal("exec", "-t", container.id, "sh", "-c", BEAT) as client:
            wait_until((data / "beat").exists, "the program runs")
            os.kill(client._pid, signal.SIGKILL)
            wait_until(lambda: not lives(data), "the program has ended")
    else:
        null = subprocess.DEVNULL
        command = ("exec", container.id, "sh", "-c", BEAT)
        process = runtime.popen(*command, stdout=null, stderr=null)
        wait_until((data / "beat").exists, "the program runs")
        process.kill()
        process.wait()
        if name == "runc":
            wait_until(lambda: lives(data), "it goes on")
        else:
            wait_until(lambda: not lives(data), "the program has ended")
    container.kill("KILL")
    wait_until(lambda: has_ended(container), "the container has ended")


def has_ended(container: Container) -> bool:
    """As Container.wait; what lost its parent is our child: as a zombie it keeps its namespace."""
    with contextlib.suppress(ChildProcessError):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == container.pid:
            container._status.append(status)
    return container._status != []
