"""The doors: where a program can run. Each is one running container, with a shell in it.

Docker's are of one dockerd, the engine tests' own; a container of runc's there is whom iperf3 talks
to. `cloche do` runs in that dockerd's network namespace, so that it reaches the same one.
"""

from __future__ import annotations

import contextlib
import select
import shlex
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from bench.debian import IMAGE
from bench.dockers import check_tools, docker_program
from bench.runtimes import CLOCHE, RUNC, RUNSC, Runtime, environment, missing
from bench.session import Answer, Lost, NoContainer, Session
from bench.timing import BenchError, Command
from engine.client import Docker
from engine.dockerd import Dockerd, EngineError, dockerd

FILES = ("9p", "fuse")
"""The values of cloche's setting `files`: under Docker each is a door of its own."""
DO = "do"
FOLDER = "/bench"
"""Where programs have their files."""
CLOCHES = (*FILES, DO)
"""Cloche's doors, by the names they have in the tables."""
ALL = (*CLOCHES, RUNSC, RUNC)

# As in `bench.runtimes`, but with a network. gVisor's own stack, the default, refuses to start: a
# kernel that shows rmem_default in every network namespace, as newer ones do, makes it believe that
# it is in the host's.
_RUNSC_FLAGS = ("--rootless=false", "--network=host", "--ignore-cgroups")
_SLEEP = ("sleep", "infinity")
_SERVE = "while :; do iperf3 -s -1 >/dev/null 2>&1; done"
_START_SECONDS = 120.0
_SET_UP_SECONDS = 600.0
_END_SECONDS = 30.0
_POLL_SECONDS = 0.05
_T = TypeVar("_T")


class Door(ABC):
    """A container: started when the first script comes, and anew when it is lost.

    One that is *broken* (why it is) is not tried again.
    """

    def __init__(self, name: str, peer: str) -> None:
        self.name = name
        self._peer = peer
        self.broken = ""
        self._session: Session | None = None

    def run(self, script: str, timeout: float) -> Answer:
        """What *script* printed and how long it took; BenchError when it fails, or the door."""
        session = self._entered()
        try:
            return session.run(script, timeout)
        except Lost:
            self.close()
            raise

    def close(self) -> None:
        """End the shell and the container."""
        if self._session is not None:
            self._session.close()
            self._session = None
        self.stop()

    def _entered(self) -> Session:
        if self.broken:
            raise NoContainer(self.broken)
        if self._session is None:
            try:
                self._session = Session(self.start(), environment())
                # Programs find the other end of a connection in $PEER.
                self._session.run(f"mkdir -p {FOLDER}", _START_SECONDS)
                self._session.define("PEER", self._peer)
            except BenchError as error:
                self.broken = f"no container: {error}"
                self.close()
                raise NoContainer(self.broken) from None
        return self._session

    @abstractmethod
    def start(self) -> list[str]:
        """Start the container; the command that leads to a shell in it. BenchError."""

    @abstractmethod
    def stop(self) -> None:
        """End the container, if there is one."""


class DockerDoor(Door):
    """A container of Docker's with the runtime *runtime*."""

    def __init__(self, name: str, peer: str, docker: Docker) -> None:
        super().__init__(name, peer)
        self._docker = docker

    def start(self) -> list[str]:
        """`docker run`, then `docker exec`."""
        container = _asked(lambda: self._docker.start(IMAGE, *_SLEEP))
        return [*self._docker.argv, "exec", "-i", container, "sh"]

    def stop(self) -> None:
        """`docker rm`; what stays is killed with the dockerd."""
        with contextlib.suppress(BenchError):
            _asked(self._docker.clean_up)


class DoDoor(Door):
    """A container of `cloche do`, whose root is *archive*."""

    def __init__(self, peer: str, runtime: Runtime, engine: Dockerd, archive: Path) -> None:
        super().__init__(DO, peer)
        self._runtime = runtime
        self._engine = engine
        self._archive = archive
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> list[str]:
        """`cloche do`, then `cloche exec`."""
        argv = self._runtime.command("do", "-q", str(self._archive), *_SLEEP)
        self._running = subprocess.Popen(
            self._engine.in_network(*argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=dict(self._runtime.environment),
        )
        return self._runtime.command("exec", self._wait_for_container(), "sh")

    def stop(self) -> None:
        """`cloche delete`, which ends the `cloche do` as well."""
        for container in self._runtime.containers():
            self._runtime.delete(container)
        if self._running is not None:
            try:
                self._running.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._running.kill()
                self._running.wait()
            self._running = None

    def _wait_for_container(self) -> str:
        assert self._running is not None
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._running.poll() is not None:
                raise BenchError(f"cloche do ended with {self._running.returncode}")
            for container in self._runtime.containers():
                with contextlib.suppress(BenchError):
                    if self._runtime.state(container)["status"] == "running":
                        return container
            select.select([], [], [], _POLL_SECONDS)
        raise BenchError(f"cloche do: not running after {_START_SECONDS:g} s")


@contextlib.contextmanager
def open_doors(
    workspace: Path, runtimes: Mapping[str, Runtime], archive: Path, names: tuple[str, ...]
) -> Iterator[list[Door]]:
    """The doors *names*; their containers end with the block. BenchError without a dockerd."""
    check_tools()
    folder = workspace / "d"
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        try:
            engine = stack.enter_context(dockerd(folder, _programs(workspace, runtimes)))
        except (EngineError, OSError, subprocess.CalledProcessError) as error:
            raise BenchError(f"docker: {error}") from None
        docker = Docker(engine, RUNC, docker_program())
        _asked(lambda: docker("load", "--input", str(archive), timeout=_SET_UP_SECONDS))
        peer = _asked(lambda: docker.address(docker.start(IMAGE, "sh", "-c", _SERVE)))
        doors = [_door(name, peer, engine, runtimes, archive) for name in names]
        for door in doors:
            stack.callback(door.close)
        yield doors


def _door(
    name: str, peer: str, engine: Dockerd, runtimes: Mapping[str, Runtime], archive: Path
) -> Door:
    if name == DO:
        return DoDoor(peer, runtimes[CLOCHE], engine, archive)
    runtime = _docker_runtime(name) if name in FILES else name
    return DockerDoor(name, peer, Docker(engine, runtime, docker_program()))


def _docker_runtime(files: str) -> str:
    return f"{CLOCHE}-{files}"


def _programs(workspace: Path, runtimes: Mapping[str, Runtime]) -> dict[str, Path]:
    """What dockerd is to call: it takes programs only, so settings and flags go into scripts."""
    found = {}
    for files in FILES:
        command = f"CLOCHE_FILES={files} exec {shlex.quote(runtimes[CLOCHE].program)}"
        found[_docker_runtime(files)] = _script(workspace / f"cloche-{files}", command)
    if not missing(runtimes[RUNSC]):
        command = f"exec {shlex.join([runtimes[RUNSC].program, *_RUNSC_FLAGS])}"
        found[RUNSC] = _script(workspace / "runsc-networked", command)
    return found


def _script(path: Path, command: str) -> Path:
    path.write_text(f'#!/bin/sh\n{command} "$@"\n')
    path.chmod(0o755)
    return path


def set_up(runtime: Runtime, archive: Path) -> dict[str, str]:
    """Have all made that cloche makes once; the doors for which that fails, and why."""
    failed = {}
    for name in CLOCHES:
        argv = [runtime.program, "setup"]
        if name == DO:
            argv = runtime.command("do", "-q", "--network", "none", str(archive), "true")
        files = {"CLOCHE_FILES": name} if name in FILES else {}
        try:
            Command(argv, {**runtime.environment, **files}).finish(_SET_UP_SECONDS)
        except BenchError as error:
            failed[name] = str(error)
    return failed


def _asked(ask: Callable[[], _T]) -> _T:
    """What docker answers; BenchError in place of what the tests' client raises."""
    try:
        return ask()
    except (AssertionError, OSError, subprocess.SubprocessError) as error:
        lines = str(error).strip().splitlines()
        raise BenchError(f"docker: {' | '.join(lines[-3:])[-400:]}") from None
