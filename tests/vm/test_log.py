"""--log, --log-format and --debug, under runc too; what guests and users write is escaped."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from subprocess import DEVNULL

import pytest

from engine.dockerd import wait_until
from engine.patience import PATIENCE_SECONDS

from .bundles import Bundle
from .runtime import Container, Runtime

EVIL = "\x1b]0;owned\x07\x9b31m\u202eafter"
SHOWN = r"\x1b]0;owned\x07\x9b31m\u202eafter"
BOTH = pytest.mark.parametrize("name", ["cloche", "runc"])


def runtime_of(request: pytest.FixtureRequest, name: str) -> Runtime:
    runtime: Runtime = request.getfixturevalue(name)
    return runtime


@BOTH
def test_the_log_file_is_there(request: pytest.FixtureRequest, folder: Path, name: str) -> None:
    runtime, log = runtime_of(request, name), folder / "log"
    assert runtime("--log", log, "list").code == 0
    assert log.read_bytes() == b""
    os.unlink(log)
    runtime("--log", log, "--version")
    assert not log.exists()
    runtime("--log", "log", "state", "nobody", code=1, cwd=folder)
    assert json.loads(log.read_text())["level"] == "error"


@BOTH
@pytest.mark.parametrize("path", ["/no/such/file", "/proc/nothing", "."])
def test_a_log_file_that_cannot_be_had(
    request: pytest.FixtureRequest, name: str, path: str
) -> None:
    result = runtime_of(request, name)("--log", path, "list", code=1)
    assert len(result.stderr.splitlines()) == 1
    assert path in result.stderr
    assert result.stdout == b""


@BOTH
@pytest.mark.parametrize("form", ["text", "json"])
def test_debug_messages(
    request: pytest.FixtureRequest, bundle: Bundle, folder: Path, name: str, form: str
) -> None:
    runtime, log = runtime_of(request, name), folder / "log"
    flags = ("--log", log, "--log-format", form)
    arguments = ("run", "--bundle", bundle.args("true").save())
    assert runtime(*flags, *arguments, runtime.new_id()).stderr == ""
    assert "debug" not in log.read_text()
    assert runtime("--debug", *flags, *arguments, runtime.new_id()).stderr == ""
    lines = log.read_text().splitlines()
    assert len(lines) >= 2
    if form == "json":
        assert {json.loads(line)["level"] for line in lines} == {"debug"}
    else:
        assert all(re.match(r'time="\S+Z" level=debug msg="', line) for line in lines)


def test_debug_messages_tell_how_it_was_started(cloche: Runtime, bundle: Bundle) -> None:
    bundle.args("true").save()
    cloche("--debug", "run", "--bundle", bundle.path, cloche.new_id())
    told = cloche.messages("debug")
    assert any(re.search(r"QEMU is process \d+: /\S*qemu", message) for message in told), told
    assert any(message.startswith("program runs after") for message in told)


@BOTH
def test_debug_messages_without_a_log_are_on_stderr(
    request: pytest.FixtureRequest, bundle: Bundle, name: str
) -> None:
    runtime = runtime_of(request, name)
    container = runtime.start(bundle)
    result = runtime("--log", "", "--debug", "exec", container.id, "echo", "out")
    assert result.output == "out"
    assert "debug" in result.stderr


def test_names_in_errors(cloche: Runtime, running: Container) -> None:
    message = cloche.fails("exec", running.id, EVIL, code=255)
    assert message.isprintable()
    assert "executable file not found" in message
    assert cloche.messages("error")[-1].isprintable()  # docker and podman print these
    message = cloche.fails("state", EVIL)
    assert message.isprintable()
    assert SHOWN in message


def sleeps(container: Container) -> int:
    """How many processes there are that do nothing but sleep."""
    lines = container.runtime("ps", container.id, "-o", "pid,args").lines
    return sum(line.split()[1:] == ["sleep", "4321"] for line in lines)


def test_processes(running: Container) -> None:
    running.exec_detached("sh", "-c", f"sleep 4321; : '{EVIL}'")
    # Until then a second shell is there for a moment: the one that becomes `sleep`.
    wait_until(lambda: sleeps(running) == 1, "it sleeps")
    for options in ([], ["-o", "pid,args"], ["aux"]):
        lines = running.runtime("ps", running.id, *options).lines
        assert all(line.isprintable() for line in lines)
        assert sum(SHOWN in line for line in lines) == 1, lines
    pids = running.runtime("ps", "--format", "json", running.id).json()
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in pids]
    assert sum(SHOWN in command for command in commands) == 1


def test_the_guests_console(cloche: Runtime, bundle: Bundle) -> None:
    device = {"type": "c", "path": "/dev/ttyS0", "major": 4, "minor": 64, "fileMode": 0o666}
    bundle.linux["devices"] = [device]
    bundle.linux["resources"] = {"devices": [{"allow": True, "access": "rwm"}]}
    log = bundle.path / "said"
    bundle.sh(f"printf '%s' '{EVIL}' >/dev/ttyS0; echo >/dev/ttyS0; echo written; sleep 1000")
    name = cloche.new_id()
    words = ("run", "--bundle", bundle.save(), name)
    with open(log, "wb") as file:
        process = cloche.popen(*words, stdin=DEVNULL, stderr=file)
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        os.kill(
            json.loads((cloche.root / name / "state.json").read_text())["vm_pid"], signal.SIGKILL
        )
        assert process.wait(PATIENCE_SECONDS) == 137
    (line,) = log.read_text().splitlines()
    assert line.isprintable()
    assert SHOWN in line
