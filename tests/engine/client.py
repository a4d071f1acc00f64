"""The docker command line, pointed at the tests' dockerd; removes whatever it made."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .dockerd import Dockerd, wait_until
from .patience import PATIENCE_SECONDS
from .terminal import Terminal

TIMEOUT_SECONDS = PATIENCE_SECONDS
"""No single docker command of these tests has a reason to take longer."""

_names = itertools.count(1)


@dataclass(frozen=True)
class Result:
    """What a docker command printed, and how it ended."""

    argv: Sequence[str]
    code: int
    stdout: bytes
    stderr: str

    @property
    def output(self) -> str:
        """stdout as text, without the last newline."""
        return self.stdout.decode(errors="replace").removesuffix("\n")

    def __str__(self) -> str:
        return f"{shlex.join(self.argv)}\n-> {self.code}\n{self.output}\n{self.stderr}"


class Docker:
    """``docker(…)`` runs one docker command; the other methods are the longer ones in short.

    Containers, networks and volumes made through it are removed by ``clean_up``.
    """

    def __init__(self, engine: Dockerd, runtime: str, program: str = "docker") -> None:
        self.engine = engine
        self.runtime = runtime
        self.argv = [program, "-H", f"unix://{engine.socket}"]
        self._made: list[tuple[str, str]] = []

    def __call__(
        self, *args: str, code: int | None = 0, data: bytes = b"", timeout: float = TIMEOUT_SECONDS
    ) -> Result:
        """Run ``docker ARGS`` with *data* as its stdin; AssertionError unless it exits with *code*.

        *code* None takes any exit code.
        """
        done = subprocess.run(
            [*self.argv, *args], input=data, capture_output=True, timeout=timeout, check=False
        )
        result = Result(args, done.returncode, done.stdout, done.stderr.decode(errors="replace"))
        assert code is None or result.code == code, f"expected {code}: {result}"
        return result

    def run(self, *args: str, code: int | None = 0, data: bytes = b"") -> Result:
        """``docker run --rm`` in the foreground; *args* are options, image and command."""
        return self(*self.run_args("--rm", *args), code=code, data=data)

    def start(self, *args: str) -> str:
        """``docker run -d``; the container's name, once its program runs."""
        argv = self.run_args("-d", *args)
        self(*argv)
        return self._made[-1][1]

    def run_args(self, *args: str) -> list[str]:
        """The arguments of a ``docker run`` with the runtime under test and a name of its own."""
        return ["run", *self.new_container_args(), *args]

    def new_container_args(self) -> list[str]:
        """``--runtime`` and ``--name`` for ``docker run`` and ``docker create``."""
        return ["--runtime", self.runtime, "--name", self.new_name()]

    def new_name(self) -> str:
        """A name that no container has; what gets it is removed by ``clean_up``."""
        return self._new("container", "c")

    @property
    def last(self) -> str:
        """The name of the container that was made last."""
        return next(name for kind, name in reversed(self._made) if kind == "container")

    def sh(self, container: str, script: str, code: int | None = 0) -> str:
        """The output of a shell *script* run by ``docker exec`` in *container*."""
        return self("exec", container, "sh", "-c", script, code=code).output

    def terminal(self, *args: str, rows: int = 24, columns: int = 80) -> Terminal:
        """``docker ARGS`` on a terminal of its own."""
        return Terminal([*self.argv, *args], rows=rows, columns=columns)

    def popen(self, *args: str, stdin: int | None = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """``docker ARGS`` in the background, stdout and stderr in one pipe."""
        return subprocess.Popen(
            [*self.argv, *args], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def inspect(self, container: str) -> dict[str, Any]:
        """What ``docker inspect`` says of *container*."""
        found: list[dict[str, Any]] = json.loads(self("inspect", container).stdout)
        return found[0]

    def state(self, container: str) -> dict[str, Any]:
        """The ``State`` part of ``inspect``."""
        state: dict[str, Any] = self.inspect(container)["State"]
        return state

    def config_json(self, container: str) -> dict[str, Any]:
        """The config.json that a running container was started with."""
        (file,) = self.engine.directory.glob(f"exec/**/{self.inspect(container)['Id']}/config.json")
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    def address(self, container: str) -> str:
        """The container's address on its first network."""
        networks = self.inspect(container)["NetworkSettings"]["Networks"]
        address: str = next(iter(networks.values()))["IPAddress"]
        return address

    def wait_for_log(self, container: str, text: str) -> None:
        """Return as soon as the container has printed *text*."""
        wait_until(lambda: text in self._logs(container), f"{container} has printed {text!r}")

    def network(self, *args: str) -> str:
        """The name of a new user-defined network."""
        name = self._new("network", "n")
        self("network", "create", *args, name)
        return name

    def volume(self) -> str:
        """The name of a new named volume."""
        name = self._new("volume", "v")
        self("volume", "create", name)
        return name

    def clean_up(self) -> None:
        """Remove what was made, containers first: they hold the networks and volumes."""
        for kind, *flags in (("container", "-f", "-v"), ("network",), ("volume",)):
            names = [name for made, name in self._made if made == kind]
            if names:
                # What a test has removed already is named in an error, and the rest is removed.
                self(kind, "rm", *flags, *names, code=None)
        self._made.clear()

    def diagnostics(self) -> str:
        """What helps with a failed test: the containers' logs and state, dockerd's last words."""
        parts = [f"--- dockerd's log ends\n{self.engine.log_tail()}"]
        for name in [name for kind, name in self._made if kind == "container"]:
            found = self("inspect", "--format", "{{json .State}}", name, code=None)
            if found.code == 0:
                parts.append(f"--- {name}: state {found.output}\nlogs:\n{self._logs(name)[-4000:]}")
        return "\n".join(parts)

    def _logs(self, container: str) -> str:
        result = self("logs", container, code=None)
        return result.output + result.stderr

    def _new(self, kind: str, letter: str) -> str:
        name = f"{letter}{os.getpid()}-{next(_names)}"
        self._made.append((kind, name))
        return name


def host_path(folder: Path, name: str, text: str) -> Path:
    """A new file *name* with *text* in *folder*, to be mounted or copied."""
    path = folder / name
    path.write_text(text)
    return path
