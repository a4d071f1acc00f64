"""``podman run``: exit codes, streams, process settings, limits."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from engine.dockerd import wait_until
from engine.terminal import DETACH, shown_size

from .client import Podman
from .scene import IMAGE, is_own_kernel


def test_own_kernel(podman: Podman) -> None:
    """The container runs in a VM: its kernel is not the host's."""
    assert is_own_kernel(podman.run(IMAGE, "uname", "-r").output)


@pytest.mark.parametrize("code", [0, 1, 3, 125, 126, 127, 128, 137, 255])
def test_exit_code(podman: Podman, code: int) -> None:
    """podman exits with what the program exits with."""
    podman.run(IMAGE, "sh", "-c", f"exit {code}", code=code)


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("nosuch", 127, "executable file not found in $PATH"),
        ("/bin/nosuch", 127, "no such file or directory"),
        ("/etc/passwd", 126, "permission denied"),
        ("/etc", 126, "permission denied"),
    ],
)
def test_what_cannot_be_run(podman: Podman, command: str, code: int, message: str) -> None:
    """126 and 127 as with every runtime, and a message that tells why."""
    assert message in podman.run(IMAGE, command, code=code).stderr


def test_killed_by_a_signal(podman: Podman) -> None:
    """128 and the number of the signal."""
    script = "trap - TERM; kill -TERM $$; sleep 1000"
    podman.run("--init", IMAGE, "sh", "-c", script, code=143)


def test_streams(podman: Podman) -> None:
    """stdin to its end; stdout and stderr apart from each other, to the last byte."""
    data = bytes(range(256)) * 4096
    assert podman.run("-i", IMAGE, "cat", data=data).stdout == data
    done = podman.run(IMAGE, "sh", "-c", "echo out; echo err >&2")
    assert (done.output, done.stderr) == ("out", "err\n")


def test_process_settings(podman: Podman) -> None:
    """-e, -w, -u, --hostname, --init."""
    options = ("-e", "A=b c", "-w", "/tmp", "-u", "1000:5", "--hostname", "there")
    script = 'echo "$A"; pwd; id -u; id -g; hostname'
    printed = podman.run(*options, IMAGE, "sh", "-c", script).output
    assert printed.splitlines() == ["b c", "/tmp", "1000", "5", "there"]
    assert "podman-init" in podman.run("--init", IMAGE, "cat", "/proc/1/cmdline").output


def test_read_only_with_tmpfs(podman: Podman) -> None:
    """--read-only closes the root; a --tmpfs, and podman's own on /tmp, are open."""
    script = "touch /x 2>/dev/null && exit 9; touch /t/x /tmp/x && stat -f -c %T /t"
    assert podman.run("--read-only", "--tmpfs", "/t", IMAGE, "sh", "-c", script).output == "tmpfs"


def test_limits(podman: Podman) -> None:
    """--memory, --cpus, --pids-limit, --ulimit are the container's in the guest."""
    options = ("--memory", "300m", "--cpus", "1", "--pids-limit", "50", "--ulimit", "nofile=99:99")
    script = "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max; nproc; ulimit -n"
    printed = podman.run(*options, IMAGE, "sh", "-c", script).output
    assert printed.splitlines() == [str(300 << 20), "100000 100000", "50", "1", "99"]


def test_limits_need_no_privilege(podman: Podman) -> None:
    """More open files than this host may give can be had; they are the guest's."""
    # By default podman asks for as many as well, but not wherever it runs.
    words = ("--ulimit", "nofile=1048576:1048576", IMAGE, "sh", "-c", "ulimit -Hn; ulimit -n")
    assert podman.run(*words).output.split() == ["1048576", "1048576"]


def test_out_of_memory(podman: Podman) -> None:
    """A kill by the guest's kernel is an event of the host's cgroup: conmon notes it.

    Debian's conmon 2.1.6 writes its note into the root of the host, whatever the runtime, so that
    podman does not find it and OOMKilled stays false.
    """
    script = "tail /dev/zero; echo survived $?; sleep 1000"
    name = podman.start("--memory", "48m", IMAGE, "sh", "-c", script)
    podman.wait_for_log(name, "survived 137")
    folder = Path(os.readlink(f"/proc/{podman.state(name)['ConmonPid']}/cwd"))
    note = folder / "oom"
    wait_until(note.exists, f"conmon has written {note}")
    if folder == Path("/"):
        note.unlink()


def test_terminal(podman: Podman) -> None:
    """-it: a real terminal with the size of the user's, Ctrl-C, and its exit code."""
    words = ("run", "--rm", "-it", "--network=none", IMAGE, "sh")
    with podman.terminal(*words, rows=33, columns=99) as terminal:
        terminal.expect("# ")
        terminal.line("tty; stty size; sleep 100; echo code $?")
        terminal.expect("/dev/pts/0")
        terminal.expect("33 99")
        terminal.send(b"\x03")
        # busybox's sh gives the line up; the next one runs.
        terminal.expect("# ")
        terminal.resize(20, 50)
        terminal.line(shown_size(20, 50) + "; exit 7")
        terminal.expect("20 50")
        assert terminal.wait() == 7


def test_detach_and_attach(podman: Podman) -> None:
    """What runs detached can be attached to, with input, and left running."""
    name = podman.new_name("container")
    podman("run", "-dit", "--network=none", "--name", name, IMAGE, "sh")
    with podman.terminal("attach", name) as terminal:
        terminal.line("echo $((40 + 2))")
        # An answer of the shell: podman has the terminal in raw mode by now.
        terminal.expect("42")
        # It knows the keys only if it reads them one by one.
        terminal.send(DETACH[:1])
        select.select([], [], [], 0.3)
        terminal.send(DETACH[1:])
        assert terminal.wait() == 0
    assert podman.state(name)["Status"] == "running"


def test_rm_removes(podman: Podman) -> None:
    """--rm: podman forgets the container when it has ended."""
    name = podman.start("--rm", IMAGE, "true")
    wait_until(
        lambda: podman("container", "exists", name, code=None).code == 1, f"{name} is forgotten"
    )
