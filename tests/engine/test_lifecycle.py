"""Starting, stopping and watching containers: everything that docker does to a running one."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from .client import Docker
from .dockerd import wait_until
from .image import IMAGE
from .patience import PATIENCE_SECONDS

TICKS = "i=0; while :; do i=$((i+1)); echo tick $i; usleep 100000; done"
HANDLES = "trap 'echo got {0}; exit {1}' {0}; echo ready; while :; do usleep 50000; done"


def test_stop_lets_program_finish(docker: Docker) -> None:
    """``stop`` sends SIGTERM; what the program makes of it is its exit code and last output."""
    name = docker.start(IMAGE, "sh", "-c", HANDLES.format("TERM", 12))
    docker.wait_for_log(name, "ready")
    docker("stop", name)
    assert docker.state(name)["ExitCode"] == 12
    assert docker("logs", name).output == "ready\ngot TERM"


def test_stop_kills_who_does_not_listen(docker: Docker) -> None:
    """After the grace period ``stop`` kills: 137."""
    name = docker.start(IMAGE, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done")
    docker.wait_for_log(name, "ready")
    docker("stop", "-t", "1", name)
    assert docker.state(name)["ExitCode"] == 137


def test_stop_through_init(docker: Docker) -> None:
    """docker-init passes SIGTERM on to a program that does not handle it: 143, at once."""
    name = docker.start("--init", IMAGE, "sleep", "1000")
    docker("stop", "-t", "30", name)
    assert docker.state(name)["ExitCode"] == 143


def test_stop_signal(docker: Docker) -> None:
    """``--stop-signal`` is what ``stop`` sends."""
    script = HANDLES.format("USR1", 3)
    name = docker.start("--stop-signal", "USR1", IMAGE, "sh", "-c", script)
    docker.wait_for_log(name, "ready")
    docker("stop", name)
    assert docker.state(name)["ExitCode"] == 3


@pytest.mark.parametrize("name_of_signal", ["USR2", "HUP", "RTMIN"])
def test_kill_with_signal(docker: Docker, name_of_signal: str) -> None:
    """``kill -s`` delivers the signal that it names."""
    number = getattr(signal, f"SIG{name_of_signal}").value
    name = docker.start(IMAGE, "sh", "-c", HANDLES.format(number, 9))
    docker.wait_for_log(name, "ready")
    docker("kill", "-s", name_of_signal, name)
    assert docker("wait", name).output == "9"


def test_kill(docker: Docker) -> None:
    """``kill`` kills, and the container is known to be dead when it returns."""
    name = docker.start(IMAGE, "sleep", "1000")
    docker("kill", name)
    state = docker.state(name)
    assert (state["Running"], state["ExitCode"]) == (False, 137)
    assert "is not running" in docker("kill", name, code=1).stderr


def test_wait(docker: Docker) -> None:
    """``wait`` returns with the exit code when the container ends, and at once when it has."""
    name = docker.start(IMAGE, "sh", "-c", "usleep 500000; exit 21")
    assert docker("wait", name).output == "21"
    assert docker("wait", name).output == "21"


def test_create_then_start(docker: Docker) -> None:
    """``create`` runs nothing, ``start`` does, ``start -a`` shows the output and exit code."""
    script = "echo ran >> /runs; cat /runs; exit 8"
    docker("create", *docker.new_container_args(), IMAGE, "sh", "-c", script)
    assert docker.state(docker.last)["Status"] == "created"
    assert docker("start", "-a", docker.last, code=8).output == "ran"
    assert docker("start", "-a", docker.last, code=8).output == "ran\nran"


def test_restart(docker: Docker) -> None:
    """``restart`` starts anew: another process, another boot of the program, the same files."""
    name = docker.start("--init", IMAGE, "sh", "-c", "echo boot >> /boots; cat /boots; sleep 1000")
    docker.wait_for_log(name, "boot")
    before = docker.state(name)["Pid"]
    docker("restart", "-t", "10", name)
    docker.wait_for_log(name, "boot\nboot\nboot")
    after = docker.state(name)
    assert after["Running"] is True
    assert after["Pid"] != before


def test_restart_policy(docker: Docker) -> None:
    """A container that fails is started again as often as its policy says."""
    docker(*docker.run_args("-d", "--restart", "on-failure:1", IMAGE, "sh", "-c", "exit 1"))
    name = docker.last
    wait_until(lambda: docker.inspect(name)["RestartCount"] == 1, f"{name} was restarted")
    wait_until(lambda: docker.state(name)["Status"] == "exited", f"{name} has ended")


def test_pause(docker: Docker) -> None:
    """``pause`` stops all processes and ``unpause`` lets them go on where they were."""
    name = docker.start(IMAGE, "sh", "-c", TICKS)
    docker.wait_for_log(name, "tick 2")
    docker("pause", name)
    assert docker.state(name)["Status"] == "paused"
    frozen = docker("logs", name).output
    assert "is paused" in docker("exec", name, "true", code=1).stderr
    with pytest.raises(AssertionError):
        wait_until(lambda: docker("logs", name).output != frozen, "output grows", seconds=0.7)
    docker("unpause", name)
    last = int(frozen.split()[-1])
    docker.wait_for_log(name, f"tick {last + 2}")


def test_kill_paused(docker: Docker) -> None:
    """A paused container can be removed by force."""
    name = docker.start(IMAGE, "sleep", "1000")
    docker("pause", name)
    docker("rm", "-f", name)
    assert docker("ps", "-aq", "--filter", f"name={name}").output == ""


def test_logs_follow(docker: Docker) -> None:
    """``logs -f`` shows what was printed, what is printed then, and ends with the container."""
    script = "mkfifo /go; echo first; read x < /go; echo last $x"
    name = docker.start(IMAGE, "sh", "-c", script)
    docker.wait_for_log(name, "first")
    follower = docker.popen("logs", "-f", name)
    assert follower.stdout is not None
    assert follower.stdout.readline() == b"first\n"
    docker.sh(name, "echo word > /go")
    output, _ = follower.communicate(timeout=PATIENCE_SECONDS)
    assert (output, follower.returncode) == (b"last word\n", 0)


def test_logs_keep_streams_apart(docker: Docker) -> None:
    """``logs`` gives stdout and stderr back as two streams."""
    docker(*docker.run_args(IMAGE, "sh", "-c", "echo out; echo err >&2"))
    result = docker("logs", docker.last)
    assert (result.stdout, result.stderr) == (b"out\n", "err\n")


def test_attach(docker: Docker) -> None:
    """``attach`` passes input on and shows output, and ends with the container's exit code."""
    name = docker.start("-i", IMAGE, "sh", "-c", "read x; echo got $x; exit 5")
    attached = docker.popen("attach", name, stdin=subprocess.PIPE)
    assert attached.stdin is not None
    assert attached.stdout is not None
    # docker's own attach shows no more once its input has ended, so that is left open.
    attached.stdin.write(b"word\n")
    attached.stdin.flush()
    assert attached.stdout.readline() == b"got word\n"
    attached.communicate(timeout=PATIENCE_SECONDS)
    assert attached.returncode == 5


def test_attach_passes_signals(docker: Docker) -> None:
    """An attached docker command passes the signals that it gets on to the program."""
    name = docker.start(IMAGE, "sh", "-c", HANDLES.format("INT", 7))
    docker.wait_for_log(name, "ready")
    attached = docker.popen("attach", name)
    wait_until(lambda: _catches(attached.pid, signal.SIGINT), "the docker command listens")
    wait_until(lambda: "attach" in docker.engine.log_tail(5), "dockerd has attached")
    os.kill(attached.pid, signal.SIGINT)
    output, _ = attached.communicate(timeout=PATIENCE_SECONDS)
    assert (output, attached.returncode) == (b"got INT\n", 7)


def _catches(pid: int, number: signal.Signals) -> bool:
    """Whether process *pid* has a handler for the signal *number*."""
    with open(f"/proc/{pid}/status") as status:
        caught = next(line for line in status if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def test_top(docker: Docker) -> None:
    """``top`` lists the container's processes."""
    name = docker.start(IMAGE, "sh", "-c", "sleep 1234 & sleep 5678")
    wait_until(lambda: "5678" in docker.sh(name, "ps"), "both run")
    output = docker("top", name, "-o", "pid,args").output
    assert "sleep 1234" in output
    assert "sleep 5678" in output
    assert all(line.split()[0].isdigit() for line in output.splitlines()[1:])


def test_rename_running(docker: Docker) -> None:
    """A running container can be renamed; nothing of it restarts."""
    name = docker.start(IMAGE, "sleep", "1000")
    pid = docker.state(name)["Pid"]
    docker("rename", name, f"{name}-b")
    assert docker.state(f"{name}-b")["Pid"] == pid
    docker("rename", f"{name}-b", name)


def test_many_at_once(docker: Docker) -> None:
    """Several containers that start at the same time all run, each with its own output."""
    running = [
        docker.popen(*docker.run_args("--rm", IMAGE, "sh", "-c", f"echo {number}; exit {number}"))
        for number in range(1, 6)
    ]
    for number, process in enumerate(running, 1):
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert (output, process.returncode) == (b"%d\n" % number, number)
