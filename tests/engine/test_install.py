"""``cloche install docker`` and ``uninstall docker`` with a dockerd that runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.base.errors import ClocheError, ConfigError
from cloche.engine.docker import install_docker, uninstall_docker

from .client import Docker
from .conftest import docker_program
from .dockerd import dockerd
from .host import kernel_release
from .image import IMAGE, build_image


@pytest.fixture(scope="session")
def program(request: pytest.FixtureRequest, runtime: str) -> Path:
    """The runtime under test as a program, to be registered as ``cloche``, whatever it is."""
    if runtime == "cloche":
        found: Path = request.getfixturevalue("cloche_program")
        return found
    path = shutil.which(runtime)
    assert path is not None
    return Path(path)


@pytest.fixture
def plain(short_path: Path) -> Iterator[Docker]:
    """The docker command line of a dockerd that knows runc only."""
    directory = short_path / "i"
    directory.mkdir()
    with dockerd(directory, {}) as engine:
        docker = Docker(engine, "cloche", docker_program())
        yield docker
        docker.clean_up()
    shutil.rmtree(directory)


def _known(docker: Docker) -> tuple[set[str], str]:
    """Names of the runtimes that dockerd knows, and of its default."""
    info = json.loads(docker("info", "--format", "{{json .}}").stdout)
    return set(info["Runtimes"]) & {"cloche", "runc"}, info["DefaultRuntime"]


def test_install_and_uninstall_while_running(plain: Docker, program: Path, tmp_path: Path) -> None:
    """dockerd takes both over at once, and containers run on through it."""
    build_image(plain, tmp_path / "image")
    file = plain.engine.config
    before = json.loads(file.read_text())
    assert _known(plain) == ({"runc"}, "runc")

    assert "taken it over" in install_docker(file, program, default=True).daemon
    assert _known(plain) == ({"runc", "cloche"}, "cloche")
    plain("run", "-d", "--name", plain.new_name(), IMAGE, "sleep", "1000")
    name = plain.last
    state = plain.inspect(name)
    assert state["HostConfig"]["Runtime"] == "cloche"

    assert "knows it already" in install_docker(file, program, default=True).daemon

    assert "taken it over" in uninstall_docker(file).daemon
    assert _known(plain) == ({"runc"}, "runc")
    assert json.loads(file.read_text()) == before
    assert plain.state(name)["Pid"] == state["State"]["Pid"]
    assert plain.sh(name, "echo alive") == "alive"
    assert "nknown runtime" in plain.run(IMAGE, "true", code=125).stderr


@pytest.mark.vm_only
def test_commands_of_a_user(plain: Docker, cloche_program: Path, tmp_path: Path) -> None:
    """What users type, found in PATH: docker runs that very command, in a VM, and forgets it."""
    build_image(plain, tmp_path / "image")
    file = plain.engine.config

    def cloche(*words: str) -> str:
        path = f"{cloche_program.parent}:{os.environ['PATH']}"
        argv = [cloche_program.name, *words, "--config", str(file)]
        environment = {**os.environ, "PATH": path}
        shell = ["sh", "-c", '"$@"', "sh", *argv]  # finds it as a user's shell does
        return subprocess.run(
            shell, env=environment, cwd="/", check=True, capture_output=True, text=True
        ).stdout

    printed = cloche("install", "docker")
    assert "has taken it over, its containers run on" in printed
    assert "docker run --rm --runtime cloche IMAGE uname -r" in printed
    runtimes = json.loads(file.read_text())["runtimes"]
    assert runtimes == {"cloche": {"path": str(cloche_program)}}
    assert plain.run(IMAGE, "uname", "-r").output != kernel_release()
    assert "already as it should be" in cloche("install", "docker")
    assert "has taken it over" in cloche("uninstall", "docker")
    assert "runtimes" not in json.loads(file.read_text())
    assert "nknown runtime" in plain.run(IMAGE, "true", code=125).stderr


def test_install_without_default(plain: Docker, program: Path) -> None:
    """Without ``--default`` containers that name no runtime stay where they were."""
    install_docker(plain.engine.config, program, default=False)
    assert _known(plain) == ({"runc", "cloche"}, "runc")


def test_dockerd_that_refuses_the_file(
    plain: Docker, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When dockerd does not take the file over, because of something else in it, we say so."""
    file = plain.engine.config
    monkeypatch.setattr("cloche.engine.dockerd.RELOAD_SECONDS", 1.0)
    file.write_text(json.dumps({**json.loads(file.read_text()), "no-such-option": 1}))
    with pytest.raises(ClocheError, match="not taken over"):
        install_docker(file, program, default=False)


def test_directive_that_is_a_flag(short_path: Path, program: Path) -> None:
    """A dockerd that was given runtimes as flags would refuse the file: we do not write it."""
    directory = short_path / "f"
    directory.mkdir()
    with dockerd(directory, {}, flags=["--add-runtime", "other=/bin/true"]) as engine:
        before = engine.config.read_text()
        with pytest.raises(ConfigError, match="--add-runtime"):
            install_docker(engine.config, program, default=False)
        assert engine.config.read_text() == before
