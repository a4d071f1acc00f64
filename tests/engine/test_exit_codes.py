"""Exit codes of ``docker run`` and ``docker exec``: the program's, a signal's, or 126 and 127."""

from __future__ import annotations

import pytest

from .client import Docker
from .image import IMAGE


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_program_exit_code(docker: Docker, code: int) -> None:
    """The program's exit code is docker's."""
    docker.run(IMAGE, "sh", "-c", f"exit {code}", code=code)


@pytest.mark.parametrize(("signal", "code"), [("KILL", 137), ("TERM", 143), ("ABRT", 134)])
def test_program_killed_by_signal(docker: Docker, idle: str, signal: str, code: int) -> None:
    """A program that dies of a signal gives 128 and its number."""
    docker("exec", idle, "sh", "-c", f"kill -{signal} $$", code=code)


@pytest.mark.parametrize(("signal", "code"), [("KILL", 137), ("TERM", 143)])
def test_container_killed_by_signal(docker: Docker, signal: str, code: int) -> None:
    """The same for a container's first process (docker-init passes its child's death on)."""
    docker.run("--init", IMAGE, "sh", "-c", f"kill -{signal} $$", code=code)


def test_first_process_ignores_its_own_signals(docker: Docker) -> None:
    """The kernel shields the first process from signals of its own namespace, SIGKILL too."""
    docker.run(IMAGE, "sh", "-c", "kill -KILL $$; exit 6", code=6)


CANNOT_START = [
    pytest.param(["nosuch"], 127, "executable file not found in $PATH", id="not-in-path"),
    pytest.param(["/bin/nosuch"], 127, "no such file or directory", id="no-such-file"),
    pytest.param(["/etc/passwd"], 126, "permission denied", id="not-executable"),
    pytest.param(["/etc"], 126, "permission denied", id="directory"),
]


@pytest.mark.parametrize(("command", "code", "message"), CANNOT_START)
def test_program_cannot_start(docker: Docker, command: list[str], code: int, message: str) -> None:
    """Exit code and message say why the program could not be started."""
    result = docker.run(IMAGE, *command, code=code)
    assert f'exec: "{command[0]}"' in result.stderr
    assert message in result.stderr


@pytest.mark.parametrize(("command", "code", "message"), CANNOT_START)
def test_exec_cannot_start(
    docker: Docker, idle: str, command: list[str], code: int, message: str
) -> None:
    """``exec`` says the same; docker 20.10 exits with 126 for either, later ones with 127 too."""
    result = docker("exec", idle, *command, code=None)
    assert result.code in {126, code}
    assert message in result.output + result.stderr


def test_not_a_program(docker: Docker) -> None:
    """A file that is executable and no program is an exec format error."""
    script = "echo garbage > /bad; chmod +x /bad"
    docker(*docker.run_args(IMAGE, "sh", "-c", script))
    docker("commit", docker.last, "bad-program")
    try:
        result = docker.run("bad-program", "/bad", code=None)
        assert "exec format error" in result.stderr
        assert result.code not in {0, 137}
    finally:
        docker("image", "rm", "-f", "bad-program")


def test_failed_start_leaves_nothing(docker: Docker) -> None:
    """After a failed start the container can be removed and its name used again."""
    docker(*docker.run_args(IMAGE, "nosuch"), code=127)
    state = docker.state(docker.last)
    assert (state["Status"], state["ExitCode"], state["Pid"]) == ("created", 127, 0)
    assert "nosuch" in state["Error"]
    docker("rm", docker.last)
