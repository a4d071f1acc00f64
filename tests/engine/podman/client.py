"""The podman command line, pointed at the tests' scene; removes whatever it made."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from typing import Any

from engine.client import Result
from engine.dockerd import wait_until
from engine.patience import PATIENCE_SECONDS
from engine.terminal import Terminal

from .scene import Scene

TIMEOUT_SECONDS = PATIENCE_SECONDS
_names = itertools.count(1)


class Podman:
    """``podman(…)`` runs one command; the other methods are the longer ones in short."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._made: list[tuple[str, str]] = []

    def __call__(
        self, *args: str, code: int | None = 0, data: bytes = b"", timeout: float = TIMEOUT_SECONDS
    ) -> Result:
        """Run ``podman ARGS`` with *data* as its stdin; AssertionError unless it exits with *code*.

        *code* None takes any exit code.
        """
        done = subprocess.run(
            self.scene.argv(*args),
            env=self.scene.environment,
            cwd="/",
            input=data,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        result = Result(args, done.returncode, done.stdout, done.stderr.decode(errors="replace"))
        assert code is None or result.code == code, f"expected {code}: {result}"
        return result

    def run(self, *args: str, code: int | None = 0, data: bytes = b"") -> Result:
        """``podman run --rm`` in the foreground, without a network unless *args* name one."""
        words = list(args)
        if not any(word.startswith(("--network", "--pod")) for word in words):
            words.insert(0, "--network=none")
        return self("run", "--rm", *words, code=code, data=data)

    def start(self, *args: str) -> str:
        """``podman run -d``; the container's name, once its program runs."""
        name = self.new_name("container")
        words = list(args)
        if not any(word.startswith(("--network", "--pod")) for word in words):
            words.insert(0, "--network=none")
        self("run", "-d", "--name", name, *words)
        return name

    def new_name(self, kind: str) -> str:
        """A name for a new *kind* (container, pod, network, volume), removed by ``clean_up``."""
        name = f"{kind[0]}{os.getpid()}-{next(_names)}"
        self._made.append((kind, name))
        return name

    def sh(self, container: str, script: str, code: int | None = 0) -> str:
        """The output of a shell *script* run by ``podman exec`` in *container*."""
        return self("exec", container, "sh", "-c", script, code=code).output

    def terminal(self, *args: str, rows: int = 24, columns: int = 80) -> Terminal:
        """``podman ARGS`` on a terminal of its own."""
        environment = [f"{name}={value}" for name, value in self.scene.environment.items()]
        argv = ["env", *environment, *self.scene.argv(*args)]
        return Terminal(argv, rows=rows, columns=columns)

    def inspect(self, container: str) -> dict[str, Any]:
        """What ``podman inspect`` says of *container*."""
        found: list[dict[str, Any]] = json.loads(self("container", "inspect", container).stdout)
        return found[0]

    def state(self, container: str) -> dict[str, Any]:
        """The ``State`` part of ``inspect``."""
        state: dict[str, Any] = self.inspect(container)["State"]
        return state

    def wait_for_log(self, container: str, text: str) -> None:
        """Return as soon as the container has printed *text*."""

        def printed() -> bool:
            result = self("logs", container, code=None)
            return text in result.output + result.stderr

        wait_until(printed, f"{container} has printed {text!r}")

    def wait_for_state(self, container: str, status: str) -> None:
        """Return as soon as podman calls the container *status*."""
        wait_until(lambda: self.state(container)["Status"] == status, f"{container} is {status}")

    def clean_up(self) -> None:
        """Remove what was made, containers first: they hold the networks and volumes."""
        for kind, *flags in (
            ("container", "--force", "--time", "0", "--ignore"),
            ("pod", "--force", "--ignore"),
            ("network", "--force"),
            ("volume", "--force"),
        ):
            names = [name for made, name in self._made if made == kind]
            if names:
                self(kind, "rm", *flags, *names, code=None)
        self._made.clear()
