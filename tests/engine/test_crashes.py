"""dockerd and what belongs to it killed while containers run: what is left can be removed."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .client import Docker
from .conftest import docker_program
from .dockerd import Dockerd, after_a_crash, dockerd, parent_of
from .image import IMAGE, build_image
from .leftovers import assert_nothing_left, interfaces


@pytest.fixture
def own(request: pytest.FixtureRequest, short_path: Path, runtime: str) -> Iterator[Dockerd]:
    """A dockerd of the test's own, to be killed."""
    directory = short_path / "k"
    directory.mkdir()
    cloche = {"cloche": request.getfixturevalue("cloche_program")} if runtime == "cloche" else {}
    with dockerd(directory, cloche) as engine:
        yield engine
    shutil.rmtree(directory)


@pytest.mark.parametrize("shim_too", [False, True], ids=["dockerd", "dockerd-and-shim"])
def test_killed(own: Dockerd, runtime: str, tmp_path: Path, shim_too: bool) -> None:
    """After a restart ``docker rm -f`` clears everything, and new containers start."""
    docker = Docker(own, runtime, docker_program())
    build_image(docker, tmp_path / "image")
    before = interfaces(docker)
    name = docker.start("--restart", "no", "-v", "/anonymous", IMAGE, "sleep", "1000")
    inspected = docker.inspect(name)
    shim = parent_of(inspected["State"]["Pid"])

    def meanwhile() -> None:
        if shim_too:
            os.kill(shim, signal.SIGKILL)

    with after_a_crash(own, meanwhile) as engine:
        docker = Docker(engine, runtime, docker_program())
        assert docker.state(name)["Running"] is False
        docker("rm", "-f", "-v", name)
        assert_nothing_left(docker, inspected["Id"], before)
        assert docker.run(IMAGE, "echo", "again").output == "again"
