"""``docker exec`` in a running container."""

from __future__ import annotations

import pytest

from .client import Docker
from .dockerd import wait_until
from .image import EXTRA_GROUP_ID, IMAGE, USER_ID
from .patience import PATIENCE_SECONDS


@pytest.mark.parametrize(
    ("options", "script", "expected"),
    [
        pytest.param((), "id -u; pwd; tty", "0\n/\nnot a tty", id="defaults"),
        pytest.param(("-e", "A=1", "-e", "B=2 3"), 'echo "$A $B"', "1 2 3", id="env"),
        pytest.param(("-w", "/home/app"), "pwd", "/home/app", id="workdir"),
        pytest.param(
            ("-u", "app"),
            "id -u; id -G; grep CapEff /proc/self/status | cut -f2",
            f"{USER_ID}\n{USER_ID} {EXTRA_GROUP_ID}\n0000000000000000",
            id="user",
        ),
        pytest.param(("-u", "12:34"), "id -u; id -g", "12\n34", id="user-numeric"),
    ],
)
def test_option(
    docker: Docker, idle: str, options: tuple[str, ...], script: str, expected: str
) -> None:
    """An option has its effect on the new process."""
    result = docker("exec", *options, idle, "sh", "-c", script, code=None)
    assert result.output == expected


def test_privileged(docker: Docker, idle: str, all_capabilities: int) -> None:
    """``--privileged`` gives every capability that dockerd knows to a process of any container."""
    effective = docker(
        "exec", "--privileged", idle, "grep", "CapEff", "/proc/self/status"
    ).output.split()[1]
    assert int(effective, 16) == all_capabilities


def test_sees_the_container(docker: Docker) -> None:
    """The new process has the container's environment, files, host name and processes."""
    name = docker.start(
        "-e", "A=b", "--hostname", "bell", IMAGE, "sh", "-c", "touch /x; sleep 1000"
    )
    wait_until(lambda: docker("exec", name, "ls", "/x", code=None).code == 0, "/x is made")
    output = docker.sh(name, "echo $A; hostname; ps -o args | grep -c 'sleep 100[0]'")
    assert output == "b\nbell\n1"


def test_piped_input(docker: Docker, idle: str) -> None:
    """``-i`` passes input and its end."""
    result = docker("exec", "-i", idle, "sh", "-c", "cat; echo end >&2", data=b"a\nb")
    assert (result.stdout, result.stderr) == (b"a\nb", "end\n")


@pytest.mark.parametrize("code", [0, 3, 255])
def test_exit_code(docker: Docker, idle: str, code: int) -> None:
    """The exit code is the program's."""
    docker("exec", idle, "sh", "-c", f"exit {code}", code=code)


def test_detached(docker: Docker, idle: str) -> None:
    """``-d`` returns at once, and the program goes on."""
    docker("exec", "-d", idle, "sh", "-c", "usleep 300000; echo done > /detached")
    assert docker("exec", idle, "cat", "/detached", code=None).code == 1
    wait_until(
        lambda: docker("exec", idle, "cat", "/detached", code=None).output == "done",
        "the detached program has run",
    )


def test_side_by_side(docker: Docker, idle: str) -> None:
    """Several at once do not mix up their streams and exit codes."""
    script = "for i in 1 2 3 4 5; do echo {0}; usleep 20000; done; exit {0}"
    running = [
        docker.popen("exec", idle, "sh", "-c", script.format(number)) for number in range(1, 6)
    ]
    for number, process in enumerate(running, 1):
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert (output, process.returncode) == (b"%d\n" % number * 5, number)


def test_ends_with_the_container(docker: Docker) -> None:
    """When the container is killed, so is what ``exec`` runs in it."""
    name = docker.start(IMAGE, "sleep", "1000")
    process = docker.popen("exec", name, "sh", "-c", "echo up; sleep 1000")
    assert process.stdout is not None
    assert process.stdout.read(3) == b"up\n"
    docker("kill", name)
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 137


def test_in_dead_container(docker: Docker) -> None:
    """``exec`` in a container that is not running is refused."""
    docker(*docker.run_args(IMAGE, "true"))
    result = docker("exec", docker.last, "true", code=1)
    assert "is not running" in result.stderr


def test_missing_workdir(docker: Docker, idle: str) -> None:
    """A working directory that does not exist is named."""
    result = docker("exec", "-w", "/nosuch", idle, "true", code=None)
    assert result.code in {126, 127}
    assert "/nosuch" in result.output + result.stderr
