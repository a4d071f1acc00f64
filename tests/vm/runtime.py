"""The OCI command line under test, cloche's or runc's, with a root folder of its own."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from engine.patience import PATIENCE_SECONDS
from engine.terminal import Terminal

from . import host
from .bundles import Bundle

TIMEOUT_SECONDS = PATIENCE_SECONDS
"""Only what hangs takes so long: on a busy machine a start that makes a template takes minutes."""

_numbers = itertools.count(1)


def new_id() -> str:
    """An id that no container has, on the whole machine: cgroups are named by it."""
    return f"t{os.getpid()}-{next(_numbers)}"


@dataclass(frozen=True)
class Result:
    """What a command printed, and how it ended."""

    argv: Sequence[str]
    code: int
    stdout: bytes
    stderr: str

    @property
    def output(self) -> str:
        """stdout as text, without the last newline."""
        return self.stdout.decode(errors="replace").removesuffix("\n")

    @property
    def lines(self) -> list[str]:
        """The lines of stdout."""
        return self.output.splitlines()

    def json(self) -> Any:  # noqa: ANN401 (whatever the command prints)
        """stdout as JSON."""
        return json.loads(self.stdout)

    def __str__(self) -> str:
        return f"{shlex.join(self.argv)}\n-> {self.code}\n{self.output}\n{self.stderr}"


class Runtime:
    """``runtime("state", id)`` runs one command; the other methods are the longer ones in short.

    Warnings go to ``log``, as with an engine; what is on stderr is errors.
    """

    def __init__(self, program: Path, directory: Path, env: Mapping[str, str]) -> None:
        self.program = program
        self.directory = directory
        self.root = directory / "root"
        self.log = directory / "log.json"
        self.env = {**os.environ, **env}
        self._ids: list[str] = []
        self._pids: list[int] = []
        directory.mkdir(parents=True)

    @property
    def argv(self) -> list[str]:
        """The command with its global flags."""
        log = ["--log", str(self.log), "--log-format", "json"]
        return [str(self.program), "--root", str(self.root), *log]

    def __call__(
        self,
        *args: object,
        code: int | None = 0,
        data: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Result:
        """Run a command with *data* as its stdin; AssertionError unless it exits with *code*.

        *code* None takes any exit code.
        """
        words = [str(arg) for arg in args]
        process = self.popen(*words, stdin=subprocess.PIPE, env=env, cwd=cwd)
        # No subprocess.run: its time-out waits for the end of pipes that supervisors hold.
        try:
            stdout, stderr = process.communicate(data, timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"no end in {TIMEOUT_SECONDS:g} s: {words}") from None
        result = Result(words, process.returncode, stdout, stderr.decode(errors="replace"))
        assert code is None or result.code == code, f"expected {code}: {result}"
        return result

    def fails(self, *args: object, code: int = 1, **options: Any) -> str:  # noqa: ANN401
        """Run a command that fails with *code*; the one line that it says."""
        result = self(*args, code=code, **options)
        lines = result.stderr.splitlines()
        assert len(lines) == 1, f"not one line: {result}"
        return lines[0]

    def run(self, bundle: Bundle, *flags: str, code: int | None = 0, data: bytes = b"") -> Result:
        """``run`` of *bundle* in the foreground, to its end."""
        return self("run", *flags, "--bundle", bundle.save(), self.new_id(), code=code, data=data)

    def create(self, bundle: Bundle, *flags: str, stdin: int = subprocess.DEVNULL) -> Container:
        """``create`` of *bundle*."""
        return self._make("create", bundle, flags, stdin)

    def start(self, bundle: Bundle, *flags: str, stdin: int = subprocess.DEVNULL) -> Container:
        """``run --detach`` of *bundle*."""
        return self._make("run", bundle, ("--detach", *flags), stdin)

    def _make(self, verb: str, bundle: Bundle, flags: Sequence[str], stdin: int) -> Container:
        name = self.new_id()
        out_file, err_file, pid_file = (
            self.directory / f"{name}.{suffix}" for suffix in ("out", "err", "pid")
        )
        words = (verb, *flags, "--pid-file", pid_file, "--bundle", bundle.save(), name)
        with open(out_file, "wb") as out, open(err_file, "wb") as err:
            code = self.popen(*words, stdin=stdin, stdout=out, stderr=err).wait(TIMEOUT_SECONDS)
        assert code == 0, f"{verb} failed: {err_file.read_text()}"
        self._pids.append(int(pid_file.read_text()))
        return Container(self, name, self._pids[-1], out_file, err_file)

    def popen(
        self,
        *args: object,
        stdin: int = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.PIPE,
        stderr: int | IO[bytes] = subprocess.PIPE,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """A command in the background."""
        words = [*self.argv, *(str(arg) for arg in args)]
        variables = {**self.env, **(env or {})}
        return subprocess.Popen(
            words, stdin=stdin, stdout=stdout, stderr=stderr, env=variables, cwd=cwd
        )

    def terminal(self, *args: object, rows: int = 24, columns: int = 80) -> Terminal:
        """A command on a terminal of its own."""
        words = [*self.argv, *(str(arg) for arg in args)]
        return Terminal(words, rows=rows, columns=columns)

    def new_id(self) -> str:
        """An id for a container that ``clean_up`` removes."""
        self._ids.append(new_id())
        return self._ids[-1]

    def messages(self, level: str) -> list[str]:
        """The messages of *level* in the log file."""
        if not self.log.exists():
            return []
        records = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [record["msg"] for record in records if record["level"] == level]

    def clean_up(self) -> None:
        """Remove every container; AssertionError when anything is left of one."""
        for container_id in self._ids:
            self("delete", "--force", container_id)
        for pid in self._pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        left = self.leftovers()
        assert not left, f"left behind: {left}"

    def leftovers(self) -> list[str]:
        """What is there of containers: directories, processes, mounts, cgroups."""
        entries = self.root.iterdir() if self.root.is_dir() else []
        return [
            *(str(path) for path in entries),
            *(f"process {pid}: {command}" for pid, command in host.processes(self.root)),
            *host.mounts(self.root),
            *(cgroup for name in self._ids for cgroup in host.cgroups(name)),
        ]

    def diagnostics(self) -> str:
        """What helps with a failed test: the log, and every container's files."""
        paths = [self.log, *sorted(self.directory.glob("*.err"))]
        paths += [path for path in sorted(self.root.rglob("*")) if path.is_file()]
        parts = [f"--- {path}\n{host.tail(path)}" for path in paths if path.exists()]
        parts += [f"--- process {pid}: {line}" for pid, line in host.processes(self.root)]
        return "\n".join(parts)


@dataclass
class Container:
    """A container of *runtime*; *pid* is the process on the host that stands for it."""

    runtime: Runtime
    id: str
    pid: int
    out: Path
    err: Path
    _status: list[int] = field(default_factory=list)

    @property
    def output(self) -> str:
        """What its program has printed until now, without the last newline."""
        return self.out.read_text(errors="replace").removesuffix("\n")

    @property
    def status(self) -> str:
        """Its status, as ``state`` tells."""
        return str(self.state()["status"])

    def state(self) -> dict[str, Any]:
        """What ``state`` tells."""
        state: dict[str, Any] = self.runtime("state", self.id).json()
        return state

    def start(self) -> None:
        """``start``."""
        self.runtime("start", self.id)

    def kill(self, *args: object) -> None:
        """``kill`` with what follows the id."""
        self.runtime("kill", self.id, *args)

    def sh(self, script: str, *flags: object, code: int | None = 0, data: bytes = b"") -> Result:
        """``exec`` of a shell script."""
        return self.runtime("exec", *flags, self.id, "sh", "-c", script, code=code, data=data)

    def exec_detached(self, *argv: str, user: str = "0:0") -> int:
        """``exec --detach`` with nothing as stdio; the process that stands for it on the host."""
        file = self.runtime.directory / "exec.pid"
        flags = ("--detach", "--user", user, "--pid-file", file)
        null = subprocess.DEVNULL
        client = self.runtime.popen("exec", *flags, self.id, *argv, stdout=null, stderr=null)
        assert client.wait(TIMEOUT_SECONDS) == 0, f"exec of {argv} failed"
        return int(file.read_text())

    def wait(self, seconds: float = TIMEOUT_SECONDS) -> int:
        """Wait for its end as an engine does, being its subreaper; the exit code."""
        if not self._status:
            pidfd = os.pidfd_open(self.pid)
            ended, _, _ = select.select([pidfd], [], [], seconds)
            os.close(pidfd)
            assert ended, f"{self.id} not ended after {seconds:g} s"
            self._status.append(os.waitpid(self.pid, 0)[1])
        return os.waitstatus_to_exitcode(self._status[0])

    def end(self) -> None:
        """Kill it and wait for its end."""
        self.kill(signal.SIGKILL.name)
        self.wait()
