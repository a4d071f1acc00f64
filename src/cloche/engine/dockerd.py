"""The dockerd that runs on this machine: found by its pid file, told to read its file again."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloche.base.errors import ClocheError

PID_FILE = Path("/var/run/docker.pid")
SOCKET = Path("/var/run/docker.sock")
RELOAD_SECONDS = 10.0
_API_SECONDS = 5.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Runtimes:
    """What a running dockerd knows: the path of each runtime by name, and the default's name."""

    paths: Mapping[str, str]
    default: str


@dataclass(frozen=True)
class Daemon:
    """A running dockerd, its command line and the socket of its API."""

    pid: int
    argv: tuple[str, ...]
    socket: Path

    def flag(self, *names: str) -> str | None:
        """The first of the flags *names* that is on the command line: ``--x=y`` or ``--x y``."""
        return next((name for name in names if self._values(name)), None)

    def runtimes(self) -> Runtimes | None:
        """What the API says of the runtimes, or None where it cannot be asked."""
        try:
            info = self._get("/info")
            paths = {name: str(entry.get("path", "")) for name, entry in info["Runtimes"].items()}
            return Runtimes(paths, str(info["DefaultRuntime"]))
        except (OSError, ValueError, KeyError, AttributeError, http.client.HTTPException):
            return None

    def reload(self, taken: Callable[[Runtimes], bool]) -> bool:
        """Have dockerd read its file again; whether the API then shows that it has.

        False means that the API cannot be asked. A dockerd that goes on as before is a
        ClocheError: it writes the reason into its log, and nowhere else.
        """
        os.kill(self.pid, signal.SIGHUP)
        if self.runtimes() is None:
            return False
        deadline = time.monotonic() + RELOAD_SECONDS
        while (known := self.runtimes()) is None or not taken(known):
            if time.monotonic() > deadline:
                raise ClocheError(
                    f"dockerd (pid {self.pid}): its configuration was not taken over on SIGHUP",
                    hint="dockerd's log says why; `systemctl restart docker` reads it anew",
                )
            select.select([], [], [], _POLL_SECONDS)
        return True

    def _values(self, name: str) -> list[str]:
        following = zip(self.argv, (*self.argv[1:], ""), strict=True)
        return [
            value if argument == name else argument.partition("=")[2]
            for argument, value in following
            if argument == name or argument.startswith(f"{name}=")
        ]

    def _get(self, path: str) -> dict[str, Any]:
        connection = _UnixConnection(self.socket)
        try:
            connection.request("GET", path)
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
            return answer
        finally:
            connection.close()


def find_dockerd(config: Mapping[str, Any]) -> Daemon | None:
    """The dockerd whose pid file is where *config* (daemon.json) says; None if none runs."""
    pid_file = Path(str(config.get("pidfile", PID_FILE)))
    try:
        pid = int(pid_file.read_text())
        is_dockerd = Path(f"/proc/{pid}/comm").read_text().strip() == "dockerd"
        argv = tuple(Path(f"/proc/{pid}/cmdline").read_text().split("\0"))
    except (OSError, ValueError):
        return None
    if not is_dockerd:  # the file is left over, and its pid belongs to something else now
        return None
    flags = Daemon(pid, argv, SOCKET)
    hosts = [*config.get("hosts", []), *flags._values("-H"), *flags._values("--host")]
    sockets = [host.removeprefix("unix://") for host in hosts if host.startswith("unix:///")]
    return Daemon(pid, argv, Path(sockets[0]) if sockets else SOCKET)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_API_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_API_SECONDS)
        self.sock.connect(os.fspath(self._path))
