"""``inspect``, ``events`` and ``ps``: what docker says of a container is what is so."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from .client import Docker
from .dockerd import wait_until
from .image import IMAGE


def test_pid_is_alive(docker: Docker) -> None:
    """State.Pid is a process of the host that lives as long as the container."""
    name = docker.start("--memory", "96m", IMAGE, "sleep", "1000")
    pid = docker.state(name)["Pid"]
    os.kill(pid, 0)
    docker("kill", name)
    assert docker.state(name)["Pid"] == 0
    assert not Path(f"/proc/{pid}").exists()


def test_pid_is_in_network_and_cgroup(docker: Docker) -> None:
    """State.Pid stands for the container: its network namespace, its cgroup, and its limits."""
    name = docker.start("--memory", "96m", IMAGE, "sleep", "1000")
    inspected = docker.inspect(name)
    pid = inspected["State"]["Pid"]
    cgroups = Path(f"/proc/{pid}/cgroup").read_text()
    assert f"{docker.engine.cgroup}/{inspected['Id']}" in cgroups
    assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink(f"/proc/{docker.engine.pid}/ns/net")


def test_state_of_ended(docker: Docker) -> None:
    """After its end: exit code, no pid, no memory trouble, no error."""
    docker(*docker.run_args(IMAGE, "sh", "-c", "exit 4"), code=4)
    state = docker.state(docker.last)
    assert (state["Status"], state["ExitCode"], state["Pid"]) == ("exited", 4, 0)
    assert (state["OOMKilled"], state["Error"]) == (False, "")


def test_ps(docker: Docker) -> None:
    """``ps`` shows a running container, and only with ``-a`` one that has ended."""
    running = docker.start(IMAGE, "sleep", "1000")
    docker(*docker.run_args(IMAGE, "sh", "-c", "exit 4"), code=4)
    form = ("--format", "{{.Names}} {{.Status}}")
    shown, everything = docker("ps", *form).output, docker("ps", "-a", *form).output
    assert f"{running} Up" in shown
    assert docker.last not in shown
    assert f"{docker.last} Exited (4)" in everything


def _events(docker: Docker, since: float) -> list[tuple[str, dict[str, Any]]]:
    """Action and attributes of the events of the container that was made last."""
    args = ("--since", f"{since:.6f}", "--until", f"{time.time() + 0.1:.6f}")
    output = docker(
        "events", *args, "--filter", f"container={docker.last}", "--format", "{{json .}}"
    )
    parsed = [json.loads(line) for line in output.output.splitlines()]
    return [(event["Action"], event["Actor"]["Attributes"]) for event in parsed]


def test_events_of_a_life(docker: Docker) -> None:
    """A container's life is told in order, with its exit code."""
    since = time.time()
    docker(*docker.run_args(IMAGE, "sh", "-c", "exit 6"), code=6)
    events = _events(docker, since)
    actions = [action for action, _ in events if action != "attach"]
    assert actions == ["create", "start", "die"]
    assert dict(events)["die"]["exitCode"] == "6"


def test_events_of_changes(docker: Docker) -> None:
    """exec, pause, kill and their results are told too."""
    since = time.time()
    name = docker.start(IMAGE, "sleep", "1000")
    docker("exec", name, "sh", "-c", "exit 3", code=3)
    docker("pause", name)
    docker("unpause", name)
    docker("kill", name)
    events = [
        (action.partition(":")[0], attributes) for action, attributes in _events(docker, since)
    ]
    told = [action for action, _ in events]
    for action in ("exec_start", "exec_die", "pause", "unpause", "kill", "die"):
        assert action in told
    assert dict(events)["exec_die"]["exitCode"] == "3"
    assert dict(events)["die"]["exitCode"] == "137"


def test_healthcheck(docker: Docker) -> None:
    """docker's health checks, which are execs, tell healthy from not."""
    options = ("--health-cmd", "test -e /healthy", "--health-interval", "300ms")
    script = "usleep 100000; touch /healthy; sleep 1000"
    name = docker.start(*options, IMAGE, "sh", "-c", script)
    wait_until(lambda: docker.state(name)["Health"]["Status"] == "healthy", "it is healthy")


def test_host_name_is_short_id(docker: Docker, idle: str) -> None:
    """Without ``--hostname`` the container is called by its short id."""
    assert docker.sh(idle, "hostname") == docker.inspect(idle)["Id"][:12]
