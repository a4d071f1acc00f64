"""Terminals: through a console socket, as engines do, and on a terminal of one's own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from engine.patience import PATIENCE_SECONDS
from engine.terminal import CTRL_C, shown_size

from .bundles import Bundle
from .console import ConsoleSocket
from .runtime import Container, Runtime
from .starts import each_start


@pytest.fixture
def console(folder: Path) -> Iterator[ConsoleSocket]:
    """A console socket."""
    with ConsoleSocket(folder / "console.sock") as console:
        yield console


@pytest.fixture
def shell(bundle: Bundle) -> Bundle:
    """A bundle with a shell on a terminal."""
    bundle.process["terminal"] = True
    bundle.process["env"].append("PS1=$ ")
    return bundle.args("sh")


@each_start
def test_a_shell_on_a_terminal_of_the_engine(
    cloche: Runtime, shell: Bundle, console: ConsoleSocket
) -> None:
    container = cloche.create(shell, "--console-socket", str(console.path))
    terminal = console.receive()
    assert terminal.name.startswith("/dev/p")
    container.start()
    terminal.send(b"tty; test -t 0 && test -t 1 && test -t 2 && echo all three\r")
    terminal.expect(r"\r\n/dev/(pts/0|console)\r\n")
    terminal.expect("all three")
    terminal.resize(33, 111)
    terminal.send(b"stty size\r")
    terminal.expect(r"\r\n33 111\r\n")
    terminal.send(b"exit 6\r")
    assert container.wait() == 6


def test_echo_and_editing_are_the_guests(
    cloche: Runtime, shell: Bundle, console: ConsoleSocket
) -> None:
    container = cloche.create(shell.args("cat"), "--console-socket", str(console.path))
    terminal = console.receive()
    container.start()
    terminal.send(b"abX\x7fc\r")
    terminal.expect(r"abX.*\r\nabc\r\n")  # echoed, then printed without what was rubbed out
    terminal.send(b"\x04")
    assert container.wait() == 0
    terminal.rest()


def test_control_c_interrupts_the_foreground(
    cloche: Runtime, shell: Bundle, console: ConsoleSocket
) -> None:
    container = cloche.create(shell, "--console-socket", str(console.path))
    terminal = console.receive()
    container.start()
    terminal.send(b"echo up; sleep 1000\r")
    terminal.expect(r"\r\nup\r\n")
    terminal.send(CTRL_C)
    terminal.expect(r"\^C[^$]*\$ ")
    terminal.send(b"echo code $?\r")
    terminal.expect(r"\r\ncode 130\r\n")
    terminal.send(b"exit\r")
    container.wait()


def test_resizing_tells_the_program(cloche: Runtime, shell: Bundle, console: ConsoleSocket) -> None:
    script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.1; done"
    container = cloche.create(shell.sh(script), "--console-socket", str(console.path))
    terminal = console.receive()
    container.start()
    terminal.expect("ready")
    terminal.resize(44, 55)
    terminal.expect("44 55")
    assert container.wait() == 0


@pytest.mark.parametrize("name", ["cloche", "runc"])
def test_the_size_that_the_config_asks_for(
    request: pytest.FixtureRequest, shell: Bundle, console: ConsoleSocket, name: str
) -> None:
    shell.process["consoleSize"] = {"height": 31, "width": 97}
    runtime: Runtime = request.getfixturevalue(name)
    container = runtime.create(shell.sh("stty size"), "--console-socket", str(console.path))
    terminal = console.receive()
    container.start()
    terminal.expect("31 97")
    assert container.wait() == 0


def test_hanging_up_tells_the_program(
    cloche: Runtime, shell: Bundle, console: ConsoleSocket
) -> None:
    script = "trap 'echo hup >/seen; exit' HUP; echo ready; while :; do sleep 0.1; done"
    container = cloche.create(shell.sh(script), "--console-socket", str(console.path))
    terminal = console.receive()
    container.start()
    terminal.expect("ready")
    terminal.close()
    container.wait()
    assert (shell.rootfs / "seen").read_text() == "hup\n"


def test_much_output_of_a_terminal_is_whole(
    cloche: Runtime, shell: Bundle, console: ConsoleSocket
) -> None:
    container = cloche.create(shell.sh("seq 1 20000"), "--console-socket", str(console.path))
    terminal = console.receive()
    container.start()
    assert terminal.rest().decode().split("\r\n") == [*map(str, range(1, 20001)), ""]
    assert container.wait() == 0


def test_exec_on_a_terminal_of_the_engine(idle: Container, console: ConsoleSocket) -> None:
    flags = ["--tty", "--console-socket", console.path, "--detach"]
    client = idle.runtime.popen("exec", *flags, idle.id, "sh", "-c", "read a; stty size; echo $a")
    terminal = console.receive()
    assert client.wait(PATIENCE_SECONDS) == 0
    terminal.resize(12, 34)
    terminal.send(b"typed\r")
    terminal.expect("12 34")
    terminal.expect("typed")
    terminal.rest()


def test_run_on_our_own_terminal(cloche: Runtime, shell: Bundle) -> None:
    arguments = ("run", "--bundle", shell.save(), cloche.new_id())
    with cloche.terminal(*arguments, rows=27, columns=91) as terminal:
        terminal.expect(r"\$ ")
        terminal.line("stty size")
        terminal.expect("27 91")
        terminal.resize(28, 92)
        terminal.line(shown_size(28, 92))
        terminal.expect("28 92")
        terminal.line("echo up; sleep 1000")
        terminal.expect(r"\nup\r")
        terminal.send(CTRL_C)
        terminal.expect(r"\^C[^$]*\$ ")
        terminal.line("exit 5")
        assert terminal.wait() == 5


def test_exec_on_our_own_terminal(idle: Container) -> None:
    arguments = ("exec", "--tty", idle.id, "sh")
    with idle.runtime.terminal(*arguments, rows=17, columns=71) as terminal:
        terminal.line("stty size")
        terminal.expect("17 71")
        terminal.resize(18, 72)
        terminal.line(shown_size(18, 72))
        terminal.expect("18 72")
        terminal.line("exit 4")
        assert terminal.wait() == 4


def test_our_own_terminal_is_as_it_was(cloche: Runtime, shell: Bundle) -> None:
    master, slave = os.openpty()
    before = termios.tcgetattr(slave)
    process = cloche.popen(
        *("run", "--bundle", shell.sh("echo bye").save(), cloche.new_id()),
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    assert process.wait(PATIENCE_SECONDS) == 0
    assert termios.tcgetattr(slave) == before
    assert b"bye" in os.read(master, 100)
    os.close(master)
    os.close(slave)


def test_exec_wants_a_terminal_although_there_is_none(idle: Container) -> None:
    result = idle.runtime("exec", "--tty", idle.id, "sh", "-c", "test -t 1 && echo yes")
    assert result.stdout == b"yes\n"


# How line feeds are printed, and the size.
SHOW = "stty -a | grep -o '[-]*onlcr'; stty size; echo a; echo b >&2"
# runc sets up the terminal while the program runs already.
AWAIT = 'until [ "$(stty size) $(stty -a | grep -oe -onlcr)" = "31 41 -onlcr" ]; do :; done 2>&-; '


@pytest.mark.parametrize("name", ["cloche", "runc"])
@pytest.mark.parametrize("stdin", ["terminal", "null"])
def test_output_to_a_pipe_has_bare_line_feeds(
    request: pytest.FixtureRequest, shell: Bundle, stdin: str, name: str
) -> None:
    runtime: Runtime = request.getfixturevalue(name)
    script = AWAIT + SHOW if name == "runc" else SHOW
    shown = b"-onlcr\n31 41\na\nb\n"
    with open_terminal(31, 41) as (slave, file):
        # stderr tells the size, as for runc.
        source = slave if stdin == "terminal" else subprocess.DEVNULL
        words: tuple[object, ...] = ("run", "--bundle", shell.sh(script).save(), runtime.new_id())
        process = runtime.popen(*words, stdin=source, stderr=file)
        assert process.communicate(timeout=PATIENCE_SECONDS)[0] == shown
        shell.process["terminal"] = False
        container = runtime.start(shell.args("sleep", "1000"))
        words = ("exec", "--tty", container.id, "sh", "-c", script)
        process = runtime.popen(*words, stdin=source, stderr=file)
        assert process.communicate(timeout=PATIENCE_SECONDS)[0] == shown


@contextlib.contextmanager
def open_terminal(rows: int, columns: int) -> Iterator[tuple[int, IO[bytes]]]:
    """The slave of a terminal of that size, as number and as file."""
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (rows, columns))
    with open(slave, "r+b", buffering=0) as file:
        yield slave, file
    os.close(master)


@pytest.mark.parametrize("verb", ["run", "exec"])
def test_a_program_that_is_not_there(
    cloche: Runtime, runc: Runtime, shell: Bundle, verb: str
) -> None:
    for runtime in (runc, cloche):
        arguments: tuple[object, ...] = ("run", "--bundle", shell.args("nothing").save())
        arguments += (runtime.new_id(),)
        if verb == "exec":
            shell.process["terminal"] = False
            container = runtime.start(shell.args("sleep", "1000"))
            arguments = ("exec", "--tty", container.id, "nothing")
            shell.process["terminal"] = True
        with runtime.terminal(*arguments) as terminal:
            terminal.expect(r'exec: .*"nothing.*": executable file not found in \$PATH')
            assert terminal.wait() == (255 if verb == "exec" else 1)


@pytest.mark.parametrize("verb", [["create"], ["run", "--detach"]])
def test_a_terminal_without_a_console_socket_is_refused(
    cloche: Runtime, runc: Runtime, shell: Bundle, verb: list[str]
) -> None:
    words = "without setting console socket"
    arguments = (*verb, "--bundle", shell.save())
    assert words in cloche.fails(*arguments, cloche.new_id())
    runc(*arguments, runc.new_id(), code=1)
    assert words in "".join(runc.messages("error"))
    assert cloche.leftovers() == []


def test_a_console_socket_that_nobody_listens_on(
    cloche: Runtime, shell: Bundle, folder: Path
) -> None:
    path = folder / "nobody"
    arguments = ("create", "--console-socket", path, "--bundle", shell.save())
    message = cloche.fails(*arguments, cloche.new_id())
    assert f"console socket {path}: no such file or directory" in message
    assert cloche.leftovers() == []


def test_a_killed_container_ends_its_terminal(
    cloche: Runtime, shell: Bundle, console: ConsoleSocket
) -> None:
    container = cloche.create(shell.args("cat"), "--console-socket", str(console.path))
    terminal = console.receive()
    container.start()
    container.kill(signal.SIGKILL.name)
    assert terminal.rest() == b""
    assert container.wait() == 137


def test_what_is_printed_at_once_keeps_its_line_ends(cloche: Runtime, shell: Bundle) -> None:
    # The program may be faster than the news of its start; our terminal is to add nothing.
    words = ("run", "--bundle", shell.sh("seq 2000").save(), cloche.new_id())
    with cloche.terminal(*words) as terminal:
        assert terminal.wait(PATIENCE_SECONDS) == 0
    assert terminal.transcript.split(b"\r\n") == [b"%d" % each for each in range(1, 2001)] + [b""]
