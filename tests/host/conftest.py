"""Network namespaces for tests: real ones, in which nothing of the machine can be touched."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from cloche.base.syscalls import CLONE_NEWNET, setns, unshare
from engine.patience import PATIENCE_SECONDS


class Namespace:
    """A network namespace that lives as long as its descriptor and what was opened inside."""

    def __init__(self) -> None:
        home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            unshare(CLONE_NEWNET)
            self.fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            self._ip("link set lo up")
        finally:
            setns(home, CLONE_NEWNET)
            os.close(home)

    @property
    def path(self) -> str:
        """A name of the namespace for ip(8)."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Run the block inside; sockets and taps made there stay there."""
        home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        setns(self.fd, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(home, CLONE_NEWNET)
            os.close(home)

    @staticmethod
    def _ip(lines: str) -> None:
        subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)

    def ip(self, *lines: str) -> None:
        """Carry out commands of ip(8) inside."""
        with self.entered():
            self._ip("\n".join(lines) + "\n")

    def run(self, *argv: str) -> str:
        """Run a program inside and return its output; CalledProcessError when it fails."""
        with self.entered():
            done = subprocess.run(
                argv, capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
            )
        return done.stdout

    def close(self) -> None:
        os.close(self.fd)


@pytest.fixture
def namespace() -> Iterator[Callable[[], Namespace]]:
    """Makes fresh network namespaces."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with ExitStack() as stack:

        def make() -> Namespace:
            made = Namespace()
            stack.callback(made.close)
            return made

        yield make
