"""The contenders: how each is called, and what it needs. All take runc's command line."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.processes import Process, all_processes, processes_below, remove_cgroups
from bench.timing import TIMEOUT_S, BenchError

CLOCHE = "cloche"
RESTORED = "cloche restored"
COLD = "cloche cold"
RUNC = "runc"
RUNSC = "runsc"
NAMES = (CLOCHE, RESTORED, COLD, RUNC, RUNSC)

RUNSC_FLAGS = ("--rootless=false", "--network=none", "--ignore-cgroups")
"""What lets gVisor run on machines without cgroup v2 delegation or a network to lend."""
ID_PREFIX = f"bench{os.getpid()}-"
"""What the ids of our containers begin with; no other benchmark uses the same now."""
_CLEAR_SECONDS = 20.0
_CLEAR_PAUSE = 0.1
_KEPT_VARIABLES = ("CLOCHE_",)


@dataclass(frozen=True)
class Runtime:
    """One contender; *root* is its own state folder, which nothing else uses."""

    name: str
    program: str
    root: Path
    flags: tuple[str, ...]
    environment: Mapping[str, str]

    def command(self, *args: str) -> list[str]:
        """The argument vector of one command."""
        return [self.program, "--root", str(self.root), *self.flags, *args]

    def run(self, bundle: Path, container: str, *, detach: bool = False) -> list[str]:
        """`run`; with *detach* it returns once the program runs."""
        return self.command(
            "run", *(["--detach"] if detach else []), "--bundle", f"{bundle}", container
        )

    def state(self, container: str) -> dict[str, Any]:
        """What `state` prints; BenchError when it fails."""
        done = self._call("state", container)
        if done.returncode != 0:
            raise BenchError(f"{self.name} state: {done.stderr.decode(errors='replace').strip()}")
        state: dict[str, Any] = json.loads(done.stdout)
        return state

    def delete(self, container: str) -> None:
        """End and remove *container*; one that is gone already is no error."""
        self._call("delete", "--force", container)

    def clear(self) -> None:
        """Remove every container that is left below the root folder."""
        for container in self.containers():
            self.delete(container)

    def containers(self) -> list[str]:
        """The ids of all containers below the root folder."""
        with contextlib.suppress(FileNotFoundError):
            return [entry.name for entry in self.root.iterdir() if entry.is_dir()]
        return []

    def processes(self, container: str) -> list[Process]:
        """All processes on the host that exist for *container*, the only one below the root."""
        pid = int(self.state(container)["pid"])
        everything = all_processes()
        found = processes_below(self.root, everything, os.getpid())
        if all(process.pid != pid for process in found):
            found += [process for process in everything if process.pid == pid]
        return found

    def _call(self, *args: str) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(
                self.command(*args),
                capture_output=True,
                check=False,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                timeout=TIMEOUT_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BenchError(f"{self.name}: {error}") from None


def environment() -> dict[str, str]:
    """What the commands get: PATH, and the variables that configure cloche."""
    kept = {key: value for key, value in os.environ.items() if key.startswith(_KEPT_VARIABLES)}
    return {**kept, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def make_runtimes(workspace: Path, cloche: Path) -> dict[str, Runtime]:
    """The contenders by name, *cloche* being the command to measure; each has its own root."""
    base = environment()
    for variable in ("CLOCHE_TEMPLATE", "CLOCHE_FREEZE"):
        base.pop(variable, None)
    restored = {**base, "CLOCHE_FREEZE": "off"}
    cold = {**base, "CLOCHE_TEMPLATE": "off"}
    return {
        CLOCHE: Runtime(CLOCHE, str(cloche), workspace / "c", (), base),
        RESTORED: Runtime(RESTORED, str(cloche), workspace / "t", (), restored),
        COLD: Runtime(COLD, str(cloche), workspace / "o", (), cold),
        RUNC: Runtime(RUNC, _packaged("runc"), workspace / "r", (), base),
        RUNSC: Runtime(RUNSC, _packaged("runsc"), workspace / "s", RUNSC_FLAGS, base),
    }


def missing(runtime: Runtime) -> str:
    """Why *runtime* cannot be measured, with what to do; empty when it can."""
    if shutil.which(runtime.program, path=runtime.environment["PATH"]):
        return ""
    return (
        f"{runtime.program} is not installed: apt-get install {os.path.basename(runtime.program)}"
    )


def clear_all(workspace: Path, runtimes: Mapping[str, Runtime]) -> None:
    """End everything that was started below *workspace*; BenchError when something stays.

    After an interruption that includes commands which had not made their container yet.
    """
    deadline = time.monotonic() + _CLEAR_SECONDS
    while True:
        for runtime in runtimes.values():
            runtime.clear()
        left = processes_below(workspace, all_processes(), os.getpid())
        if not left:
            remove_cgroups(f"{ID_PREFIX}*")
            return
        if time.monotonic() > deadline:
            names = ", ".join(f"{process.pid} ({process.command})" for process in left)
            raise BenchError(f"processes that do not end: {names}")
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        select.select([], [], [], _CLEAR_PAUSE)


def _packaged(program: str) -> str:
    """Debian's own *program* where it is installed: one in /usr/local may be of another release."""
    for folder in ("/usr/bin", "/usr/sbin"):
        if os.access(f"{folder}/{program}", os.X_OK):
            return f"{folder}/{program}"
    return program
