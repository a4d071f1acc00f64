"""`exec`: flags, files, exit codes; held against runc where it can be."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from engine.dockerd import wait_until
from engine.patience import PATIENCE_SECONDS

from .bundles import Bundle
from .runtime import Container, Runtime

STATUS = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs)' /proc/self/status"


def test_flags_change_the_process_as_runcs_do(
    idle: Container, runc: Runtime, bundle: Bundle
) -> None:
    theirs = runc.start(bundle)
    script = f'{STATUS}; pwd; echo "$A-$B"; umask'
    flags = ["--user", "1:2", "--additional-gids", "3", "--additional-gids", "4", "--cwd", "/tmp"]
    flags += ["-e", "A=1", "-e", "B=2 3", "--cap", "CAP_KILL", "--no-new-privs"]
    ours = idle.sh(script, *flags).lines
    expected = theirs.sh(script, *flags).lines
    assert ours == expected
    assert ours[-3:] == ["/tmp", "1-2 3", "0022"]


def test_a_user_without_group_has_group_0(idle: Container) -> None:
    assert idle.sh("id -u; id -g", "--user", "65534").lines == ["65534", "0"]


def process_file(folder: Path, **changes: object) -> Path:
    """A file for ``--process``."""
    process: dict[str, Any] = {
        "args": ["sh", "-c", "echo $FROM; id -u; pwd"],
        "cwd": "/usr",
        "env": ["FROM=file", "PATH=/bin:/usr/bin"],
        "user": {"uid": 1, "gid": 1},
    }
    path = folder / "process.json"
    path.write_text(json.dumps(process | changes))
    return path


@pytest.mark.parametrize("flag", ["--process", "-p"])
def test_process_from_a_file(idle: Container, folder: Path, flag: str) -> None:
    result = idle.runtime("exec", flag, process_file(folder), idle.id)
    assert result.lines == ["file", "1", "/usr"]


def test_limits_of_a_process_file(idle: Container, folder: Path) -> None:
    limits = [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]
    path = process_file(folder, args=["sh", "-c", "ulimit -Sn; ulimit -Hn"], rlimits=limits)
    assert idle.runtime("exec", "-p", path, idle.id).lines == ["77", "88"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "process.json"),
        ("[]", "process"),
        ('{"args": [1], "cwd": "/"}', "args"),
        ('{"args": ["true"], "cwd": "relative"}', "cwd"),
        ('{"cwd": "/"}', "args"),
    ],
)
def test_a_bad_process_file_is_one_line(
    idle: Container, folder: Path, text: str, problem: str
) -> None:
    path = folder / "process.json"
    path.write_text(text)
    message = idle.runtime.fails("exec", "--process", path, idle.id, code=255)
    assert "exec failed: " in message
    assert problem in message


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("nothing", '"nothing": executable file not found in $PATH'),
        ("/nothing", '"/nothing": stat /nothing: no such file or directory'),
        ("/etc", '"/etc": permission denied'),
        ("/etc/passwd", '"/etc/passwd": permission denied'),
    ],
)
def test_what_cannot_be_executed_is_told_in_runcs_words(
    idle: Container, runc: Runtime, bundle: Bundle, path: str, cause: str
) -> None:
    assert cause in idle.runtime.fails("exec", idle.id, path, code=255)
    result = runc("exec", runc.start(bundle).id, path, code=255)
    theirs = result.stderr.replace("\\", "") + "".join(runc.messages("error"))
    # Newer ones have it from a newer Go; to Docker both are status 126.
    assert cause in theirs.replace("is a directory", "permission denied")


def test_a_missing_folder(idle: Container) -> None:
    message = idle.runtime.fails("exec", "--cwd", "/nowhere", idle.id, "true", code=255)
    assert "/nowhere" in message
    assert "no such file or directory" in message


@pytest.mark.parametrize("arguments", [["unknown", "true"], ["{id}"]])
def test_failures_exit_with_255(idle: Container, arguments: list[str]) -> None:
    words = [word.format(id=idle.id) for word in arguments]
    assert "exec failed: " in idle.runtime.fails("exec", *words, code=255)


def test_detach_leaves_a_process_that_stands_for_it(idle: Container) -> None:
    script = "trap 'echo told >/tmp/told; exit 5' TERM; echo >/tmp/up; while :; do sleep 0.1; done"
    stand_in = idle.exec_detached("sh", "-c", script)
    wait_until(lambda: idle.sh("test -e /tmp/up", code=None).code == 0, "it runs")
    idle.runtime("exec", idle.id, "test", "!", "-e", "/tmp/told")
    os.kill(stand_in, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(stand_in, 0)[1]) == 5
    assert idle.sh("cat /tmp/told").output == "told"


def test_detached_output_goes_where_its_stdout_is(idle: Container) -> None:
    result = idle.runtime.popen("exec", "--detach", idle.id, "sh", "-c", "sleep 0.3; echo late")
    output, _ = result.communicate(timeout=PATIENCE_SECONDS)
    assert (result.returncode, output) == (0, b"late\n")


def test_a_killed_client_takes_its_process_along(idle: Container) -> None:
    client = idle.runtime.popen("exec", idle.id, "sh", "-c", "echo up; exec sleep 4321")
    assert client.stdout is not None
    assert client.stdout.readline() == b"up\n"
    client.kill()
    client.wait()
    wait_until(lambda: "sleep 4321" not in idle.runtime("ps", idle.id).output, "it is gone")


def test_signals_to_the_client_reach_the_process(idle: Container) -> None:
    script = "trap 'echo got; exit 9' TERM; echo up; while :; do sleep 0.1; done"
    client = idle.runtime.popen("exec", idle.id, "sh", "-c", script)
    assert client.stdout is not None
    assert client.stdout.readline() == b"up\n"
    client.terminate()
    assert client.stdout.read() == b"got\n"
    assert client.wait() == 9


def test_twenty_in_a_row(idle: Container) -> None:
    for number in range(20):
        assert idle.sh(f"echo {number}; exit {number}", code=number).output == str(number)


def test_ten_at_once(idle: Container) -> None:
    clients = [
        idle.runtime.popen("exec", idle.id, "sh", "-c", f"echo {number}; exit {number}")
        for number in range(10)
    ]
    for number, client in enumerate(clients):
        output, _ = client.communicate(timeout=PATIENCE_SECONDS)
        assert (output, client.returncode) == (f"{number}\n".encode(), number)


def test_exec_in_a_created_container(created: Container) -> None:
    assert created.sh("echo early").output == "early"
    created.start()
    assert created.status == "running"


def test_a_process_left_behind_ends_with_the_container(running: Container) -> None:
    running.exec_detached("sleep", "2000")
    running.end()
    running.runtime("delete", running.id)
    assert running.runtime.leftovers() == []
