"""Fixtures: one podman for all tests, and a podman command line per test."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .client import Podman
from .scene import IMAGE, Scene, scene

_PACKAGES = {
    "podman": "podman",
    "conmon": "conmon",
    "/usr/lib/podman/netavark": "netavark",
    "/usr/lib/podman/aardvark-dns": "aardvark-dns",
    "catatonit": "catatonit",
    "busybox": "busybox-static",
    "iptables": "iptables",
    "ip": "iproute2",
}


@pytest.fixture(scope="session")
def podman_scene(cloche_program: Path, runtime: str) -> Iterator[Scene]:
    """A podman that has the image."""
    if os.geteuid() != 0:
        pytest.fail("the tests of podman make namespaces: run them as root")
    missing = sorted(package for tool, package in _PACKAGES.items() if not shutil.which(tool))
    if missing:
        pytest.fail(f"missing tools: apt-get install {' '.join(missing)}")
    # Short: sockets below it must fit the 108 bytes of sockaddr_un.
    folder = Path(tempfile.mkdtemp(prefix="cloche-"))
    with scene(folder, runtime, cloche_program) as here:
        yield here
    shutil.rmtree(folder)


@pytest.fixture
def podman(podman_scene: Scene) -> Iterator[Podman]:
    """The podman command line; what the test makes with it is removed after it."""
    podman = Podman(podman_scene)
    yield podman
    podman.clean_up()


@pytest.fixture(scope="module")
def shared(podman_scene: Scene) -> Iterator[Podman]:
    """The podman command line of what the tests of one module share."""
    podman = Podman(podman_scene)
    yield podman
    podman.clean_up()


@pytest.fixture(scope="module")
def idle(shared: Podman) -> str:
    """A container that does nothing, for tests that only look at it or exec in it."""
    return shared.start("--init", IMAGE, "sleep", "1000")
