"""A container's life through the OCI command line."""

from __future__ import annotations

import hashlib
import os
import select

from .cloche import Cloche
from .conftest import Bundle


def test_create_start_kill_delete(cloche: Cloche, bundle: Bundle) -> None:
    bundle.write("sh", "-c", "trap 'exit 7' TERM; echo up >/dev/shm/up; sleep 1000 & wait")
    pid_file = bundle.folder / "pid"
    cloche.run("create", "-b", bundle.folder, "--pid-file", pid_file, "c")
    created = cloche.state("c")
    assert (created["status"], created["pid"]) == ("created", int(pid_file.read_text()))
    cloche.run("start", "c")
    assert cloche.state("c")["status"] == "running"
    cloche.run("exec", "c", "sh", "-c", "until [ -e /dev/shm/up ]; do sleep 0.1; done")
    supervisor = os.pidfd_open(created["pid"])
    cloche.run("kill", "c", "TERM")
    assert select.select([supervisor], [], [], 60)[0]
    os.close(supervisor)
    assert cloche.state("c")["status"] == "stopped"
    cloche.run("delete", "c")
    gone = cloche.run("state", "c", check=False)
    assert gone.returncode == 1
    assert "does not exist" in gone.stderr


def test_run_gives_output_and_exit_status(cloche: Cloche, bundle: Bundle) -> None:
    bundle.write("sh", "-c", "echo out; echo err >&2; exit 42")
    done = cloche.run("run", "-b", bundle.folder, "c", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (42, "out\n", "err\n")


def test_a_megabyte_through_stdin_and_stdout(cloche: Cloche, bundle: Bundle) -> None:
    data = os.urandom(1 << 20)
    bundle.write("sh", "-c", "tee /dev/shm/copy | sha256sum; sha256sum </dev/shm/copy")
    done = cloche.run("run", "-b", bundle.folder, "c", stdin=data)
    digest = hashlib.sha256(data).hexdigest()
    assert done.stdout.split() == [digest, "-", digest, "-"]


def test_the_guest_has_its_own_kernel(cloche: Cloche, idle: str) -> None:
    boot_id = "/proc/sys/kernel/random/boot_id"
    with open(boot_id, encoding="ascii") as file:
        own = file.read()
    assert cloche.run("exec", idle, "cat", boot_id).stdout not in ("", own)


def test_exec(cloche: Cloche, idle: str) -> None:
    echo = cloche.run("exec", "-e", "A=b", idle, "sh", "-c", "echo $A; cat; exit 3", check=False)
    assert (echo.returncode, echo.stdout) == (3, "b\n")
    piped = cloche.run("exec", idle, "cat", stdin=b"hello")
    assert piped.stdout == "hello"
    missing = cloche.run("exec", idle, "no-such-program", check=False)
    assert missing.returncode == 255
    assert "no-such-program" in missing.stderr


def test_pause_and_resume(cloche: Cloche, idle: str) -> None:
    cloche.run("pause", idle)
    assert cloche.state(idle)["status"] == "paused"
    cloche.run("resume", idle)
    assert cloche.state(idle)["status"] == "running"
    assert cloche.run("exec", idle, "echo", "awake").stdout == "awake\n"


def test_ps_shows_the_guests_processes(cloche: Cloche, idle: str) -> None:
    rows = cloche.run("ps", idle).stdout.splitlines()
    assert rows[0].split() == ["UID", "PID", "PPID", "TIME", "CMD"]
    assert [row.split()[-2:] for row in rows[1:]] == [["sleep", "1000"]]
