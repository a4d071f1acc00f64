"""``-it``: a real terminal in the container, driven through a real one outside."""

from __future__ import annotations

from .client import Docker
from .image import IMAGE
from .terminal import CTRL_C, DETACH

ROWS, COLUMNS = 33, 101
SIZED = f'until [ "$(stty size)" = "{ROWS} {COLUMNS}" ]; do usleep 50000; done; '
"""Shell: wait for the window size; docker sets it after the program has started."""


def test_terminal_and_size(docker: Docker) -> None:
    """The program has a terminal on all three streams, as large as the one outside."""
    script = SIZED + "tty; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo all; stty size"
    args = docker.run_args("--rm", "-it", IMAGE, "sh", "-c", script)
    with docker.terminal(*args, rows=ROWS, columns=COLUMNS) as terminal:
        terminal.expect(r"/dev/(pts/\d+|console)\r\nall\r\n33 101\r\n")
        assert terminal.wait() == 0


def test_window_size_change(docker: Docker) -> None:
    """A change of the window's size gets there while the program runs, with SIGWINCH."""
    script = SIZED + "trap 'stty size' WINCH; echo ready; while :; do usleep 50000; done"
    args = docker.run_args("--rm", "-it", IMAGE, "sh", "-c", script)
    with docker.terminal(*args, rows=ROWS, columns=COLUMNS) as terminal:
        terminal.expect("ready")
        terminal.resize(50, 120)
        terminal.expect("50 120")
        docker("kill", docker.last)
        assert terminal.wait() == 137


def test_shell_echo_and_exit_code(docker: Docker) -> None:
    """An interactive shell: what is typed is echoed, runs, and its exit code comes back."""
    args = docker.run_args("--rm", "-it", IMAGE, "sh")
    with docker.terminal(*args) as terminal:
        terminal.expect("# ")
        terminal.line("echo sum-$((40+2))")
        terminal.expect(r"echo sum-\$\(\(40\+2\)\)")
        terminal.expect("sum-42")
        terminal.line("exit 5")
        assert terminal.wait() == 5


def test_ctrl_c_interrupts_foreground(docker: Docker) -> None:
    """Ctrl-C kills what runs in the foreground of the shell, and not the shell."""
    args = docker.run_args("--rm", "-it", IMAGE, "sh")
    with docker.terminal(*args) as terminal:
        terminal.expect("# ")
        terminal.line("echo go-$((1+1)); sleep 1000")
        terminal.expect("go-2")
        terminal.send(CTRL_C)
        terminal.expect("# ")
        terminal.line("echo code-$?")
        terminal.expect("code-130")
        terminal.line("exit 3")
        assert terminal.wait() == 3


def test_ctrl_c_ends_container(docker: Docker) -> None:
    """Ctrl-C ends a container whose program does not handle it, with 130."""
    args = docker.run_args("--rm", "-it", "--init", IMAGE, "sh", "-c", "echo go; sleep 1000")
    with docker.terminal(*args) as terminal:
        terminal.expect("go")
        terminal.send(CTRL_C)
        assert terminal.wait() == 130


def test_detach_and_attach(docker: Docker) -> None:
    """Ctrl-P Ctrl-Q leaves the container running; ``attach`` comes back to the same shell."""
    with docker.terminal(*docker.run_args("-it", IMAGE, "sh")) as terminal:
        terminal.expect("# ")
        terminal.line("KEPT=$((20+3))")
        terminal.expect("# ")
        terminal.send(DETACH)
        assert terminal.wait() == 0
    assert docker.state(docker.last)["Running"] is True
    with docker.terminal("attach", docker.last) as terminal:
        terminal.line("echo kept-$KEPT")
        terminal.expect("kept-23")
        terminal.line("exit 4")
        assert terminal.wait() == 4


def test_exec_terminal(docker: Docker, idle: str) -> None:
    """``exec -it`` has a terminal of its own, with the size of the window and its changes."""
    args = ("exec", "-it", idle, "sh", "-c", SIZED + "tty; read x; stty size; exit 9")
    with docker.terminal(*args, rows=ROWS, columns=COLUMNS) as terminal:
        terminal.expect(r"/dev/pts/\d+")
        terminal.resize(11, 22)
        docker.sh(idle, f"until grep -q . /proc/version; do :; done; {_wait_for_size('11 22')}")
        terminal.line("")
        terminal.expect("11 22")
        assert terminal.wait() == 9


def _wait_for_size(size: str) -> str:
    """Shell: wait until some terminal of the container has *size* (rows and columns)."""
    return (
        f'until for t in /dev/pts/[0-9]*; do stty size -F $t; done | grep -q "^{size}$";'
        " do usleep 50000; done"
    )


def test_terminal_joins_streams(docker: Docker) -> None:
    """With a terminal and no input (``-t``), stderr is in the one stream, with CR LF."""
    result = docker.run("-t", IMAGE, "sh", "-c", "echo out; echo err >&2")
    assert (result.stdout, result.stderr) == (b"out\r\nerr\r\n", "")
