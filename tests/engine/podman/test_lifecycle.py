"""The life of a container under podman: exec, signals, pause, restart, health, its pid."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.base import syscalls
from engine.dockerd import wait_until
from engine.host import kernel_release
from engine.patience import PATIENCE_SECONDS

from .client import Podman
from .scene import IMAGE

TRAP = 'trap "echo got term; exit 5" TERM; echo ready; while :; do sleep 0.1; done'


def test_exec(shared: Podman, idle: str) -> None:
    """Exit code, streams, -u, -e, -w."""
    assert shared("exec", "-i", idle, "cat", data=b"in\n").output == "in"
    script = "id -u; echo $A; pwd; exit 7"
    words = ("-u", "1000", "-e", "A=b", "-w", "/tmp", idle, "sh", "-c", script)
    assert shared("exec", *words, code=7).output.splitlines() == ["1000", "b", "/tmp"]
    assert "not found" in shared("exec", idle, "nosuch", code=127).stderr
    shared("exec", idle, "/etc/passwd", code=126)


def test_exec_detached(shared: Podman, idle: str) -> None:
    """-d: returns at once, and the process runs on."""
    shared("exec", "-d", idle, "sh", "-c", "echo $$ >/tmp/pid; exec sleep 1000")
    wait_until(lambda: shared.sh(idle, "cat /tmp/pid 2>/dev/null", code=None) != "", "it runs")
    assert shared.sh(idle, "tr '\\0' ' ' </proc/$(cat /tmp/pid)/cmdline") == "sleep 1000 "


def test_exec_on_a_terminal(shared: Podman, idle: str) -> None:
    """-it: a terminal of its own."""
    with shared.terminal("exec", "-it", idle, "sh", rows=30, columns=90) as terminal:
        terminal.expect("# ")
        terminal.line("tty; stty size; exit 3")
        terminal.expect("/dev/pts/")
        terminal.expect("30 90")
        assert terminal.wait() == 3


def test_top(shared: Podman, idle: str) -> None:
    """podman top shows the guest's processes with the container's own pids, and no others."""
    shared("exec", "-d", "-u", "1000", idle, "sh", "-c", "echo $$ >/tmp/987; exec sleep 987")
    wait_until(lambda: "sleep 987" in shared("top", idle, "args").output, "it runs")
    lines = shared("top", idle, "pid", "ppid", "user", "args").output.splitlines()[1:]
    found = [line.split(maxsplit=3) for line in lines]
    assert ["1", "0", "root"] in [words[:3] for words in found]
    assert ["app", "sleep 987"] in [[words[2], words[3].strip()] for words in found]
    assert len(lines) < 12, lines
    # Asked again, it tells of what runs now.
    shared.sh(idle, "kill -9 $(cat /tmp/987)")
    assert "sleep 987" not in shared("top", idle, "pid", "args").output


def test_top_tells_when_it_began(podman: Podman) -> None:
    """The elapsed time is that since the start of the process, not of the template's guest."""
    name = podman.start(IMAGE, "sleep", "1000")
    elapsed = podman("top", name, "etime").output.splitlines()[1]
    assert elapsed.endswith("s"), elapsed
    assert "h" not in elapsed, elapsed
    assert float(elapsed.removesuffix("ms").removesuffix("s").rpartition("m")[2]) >= 0


def test_stats(shared: Podman, idle: str) -> None:
    """Memory and processes of the VM, which stands for the container on the host."""
    told = json.loads(shared("stats", "--no-stream", "--format", "json", idle).stdout)[0]
    assert int(told["pids"]) >= 1
    assert not told["mem_usage"].startswith("0B")


def test_inspect(shared: Podman, idle: str) -> None:
    """The pid is that of a process whose end is the container's."""
    state = shared.state(idle)
    assert state["Status"] == "running"
    assert not state["OOMKilled"]
    assert Path(f"/proc/{state['Pid']}/comm").read_text().strip() == "cloche"
    assert shared.inspect(idle)["OCIRuntime"] == "cloche"


def test_logs(podman: Podman) -> None:
    """logs -f follows to the container's end."""
    name = podman.start(IMAGE, "sh", "-c", "for i in 1 2 3; do echo line $i; sleep 0.1; done")
    assert podman("logs", "-f", name).output == "line 1\nline 2\nline 3"
    assert podman("logs", "--tail", "1", name).output == "line 3"


def test_stop_and_start_again(podman: Podman) -> None:
    """stop sends SIGTERM and waits; start and restart run it again in a new VM."""
    name = podman.start(IMAGE, "sh", "-c", TRAP)
    podman.wait_for_log(name, "ready")
    first = podman.sh(name, "cat /proc/sys/kernel/random/boot_id")
    podman("stop", "-t", "20", name)
    assert podman.state(name)["ExitCode"] == 5
    assert "got term" in podman("logs", name).output
    podman("start", name)
    pid = podman.state(name)["Pid"]
    podman("restart", "-t", "0", name)
    assert podman.state(name)["Pid"] != pid
    assert podman.sh(name, "cat /proc/sys/kernel/random/boot_id") != ""
    assert podman.sh(name, "uname -r") != kernel_release()
    assert first


def test_stop_kills_what_does_not_listen(podman: Podman) -> None:
    """After the grace period SIGKILL."""
    name = podman.start(IMAGE, "sh", "-c", 'trap "" TERM; while :; do sleep 1; done')
    podman("stop", "-t", "1", name)
    assert podman.state(name)["ExitCode"] == 137


@pytest.mark.parametrize(("name", "code"), [("KILL", 137), ("TERM", 5)])
def test_kill(podman: Podman, name: str, code: int) -> None:
    """kill -s, and wait tells the exit code."""
    container = podman.start(IMAGE, "sh", "-c", TRAP)
    podman.wait_for_log(container, "ready")
    podman("kill", "-s", name, container)
    assert podman("wait", container).output == str(code)


def test_pause(podman: Podman) -> None:
    """A paused container makes no progress, and goes on from where it was."""
    name = podman.start(IMAGE, "sh", "-c", "while :; do echo x; sleep 0.05; done")
    podman.wait_for_log(name, "x")
    podman("pause", name)
    assert podman.state(name)["Status"] == "paused"
    before = podman("logs", name).output
    podman("exec", name, "true", code=255)
    assert podman("logs", name).output == before
    podman("unpause", name)
    wait_until(lambda: podman("logs", name).output != before, "it goes on")


def test_events(podman: Podman) -> None:
    """podman's own record of a container's life is complete."""
    name = podman.start(IMAGE, "true")
    podman("wait", name)
    podman("rm", name)
    words = ("--stream=false", "--filter", f"container={name}", "--format", "{{.Status}}")
    told = podman("events", *words).output.split()
    for event in ("create", "init", "start", "died", "remove"):
        assert event in told, told


def test_health(podman: Podman) -> None:
    """A health check is an exec, and its result podman's."""
    check = ("--health-cmd", "test -e /tmp/well", "--health-interval", "disable")
    name = podman.start(*check, IMAGE, "sleep", "1000")
    podman("healthcheck", "run", name, code=1)
    podman.sh(name, "touch /tmp/well")
    podman("healthcheck", "run", name)
    assert podman.state(name)["Health"]["Status"] == "healthy"


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Get what loses its parent meanwhile as children of ours, to be reaped here.

    podman waits until a container's process is quite gone, and not every machine's first process
    reaps what it is left.
    """
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 0)


def test_conmon_killed(podman: Podman, cloche_program: Path) -> None:
    """A container whose conmon is killed can still be removed, with its VM.

    podman 4.3 then never asks the runtime to delete it, whichever it is. podman 5 first says that
    it does not know how it ended.
    """
    with adopting():
        name = podman.start(IMAGE, "sleep", "1000")
    state = podman.state(name)
    container_id = podman.inspect(name)["Id"]
    with adopting():
        os.kill(state["ConmonPid"], signal.SIGKILL)
        os.waitpid(state["ConmonPid"], 0)
    reaper = threading.Thread(target=os.waitpid, args=(state["Pid"], 0))
    reaper.start()
    wait_until(lambda: podman("rm", "-f", "-t", "0", name, code=None).code == 0, "it is removed")
    reaper.join(PATIENCE_SECONDS)
    assert not reaper.is_alive()
    subprocess.run([str(cloche_program), "delete", "--force", container_id], check=True)


def test_supervisor_killed(podman: Podman) -> None:
    """When the process that stands for the container is killed, the container has ended."""
    name = podman.start(IMAGE, "sleep", "1000")
    os.kill(podman.state(name)["Pid"], signal.SIGKILL)
    podman.wait_for_state(name, "exited")
    assert podman.state(name)["ExitCode"] == 137
