"""Fixtures: one dockerd for all tests, an image, and a docker command line per test.

``--engine-runtime`` (or CLOCHE_ENGINE_RUNTIME) names the runtime under test, ``cloche`` by
default. With ``runc`` the tests prove themselves: whatever fails there is the test's own fault.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from .client import Docker
from .dockerd import Dockerd, dockerd
from .host import all_capabilities_mask, bounding_set
from .image import IMAGE, build_image

SHARED_KERNEL_RUNTIMES = {"runc", "crun", "runsc"}
_PACKAGES = {
    "dockerd": "docker.io",
    "docker": "docker.io",
    "containerd": "containerd",
    "busybox": "busybox-static",
    "iptables": "iptables",
    "ip": "iproute2",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options; tests that are started from above this folder use the variables instead."""
    group = parser.getgroup("engine")
    group.addoption("--engine-runtime", help="runtime under test (default: cloche)")
    group.addoption("--cloche", help="path of the cloche command (default: beside python, PATH)")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of tests that need a kernel per container."""
    config.addinivalue_line("markers", "vm_only: holds only where a container has its own kernel")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests of VMs where the runtime under test shares the host's kernel."""
    runtime = _runtime(config)
    if runtime not in SHARED_KERNEL_RUNTIMES:
        return
    for item in items:
        if item.get_closest_marker("vm_only"):
            item.add_marker(pytest.mark.skip(reason=f"{runtime} shares the host's kernel"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the containers' logs and state and dockerd's log to the report of a failed test."""
    report = yield
    if report.failed and call.when == "call":
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Docker):
                report.sections.append(("docker", value.diagnostics()))
    return report


def _option(config: pytest.Config, name: str, variable: str) -> str | None:
    value: str | None = config.getoption(name, default=None)
    return value or os.environ.get(variable)


def _runtime(config: pytest.Config) -> str:
    return _option(config, "--engine-runtime", "CLOCHE_ENGINE_RUNTIME") or "cloche"


def _cloche_program(config: pytest.Config) -> Path | None:
    """The cloche command under test: as told, else beside this Python, else in PATH."""
    told = _option(config, "--cloche", "CLOCHE_PROGRAM")
    beside = Path(sys.executable).parent / "cloche"
    found = told or (str(beside) if beside.exists() else shutil.which("cloche"))
    return Path(found).absolute() if found else None


@pytest.fixture(scope="session")
def runtime(request: pytest.FixtureRequest) -> str:
    """Name of the runtime under test."""
    return _runtime(request.config)


@pytest.fixture(scope="session")
def cloche_program(request: pytest.FixtureRequest) -> Path:
    """The cloche command; fails, with what to do, where there is none."""
    program = _cloche_program(request.config)
    if program is None or not os.access(program, os.X_OK):
        pytest.fail(f"no cloche command ({program}); install it, or name it with --cloche")
    return program


@pytest.fixture(scope="session")
def short_path() -> Iterator[Path]:
    """A folder with a short name, for sockets: pytest's own names can be too long for them."""
    _check_machine()
    folder = Path(tempfile.mkdtemp(prefix="cloche-"))
    yield folder
    shutil.rmtree(folder)


def _check_machine() -> None:
    if os.geteuid() != 0:
        pytest.fail("the engine tests start a dockerd: run them as root")
    missing = sorted(package for tool, package in _PACKAGES.items() if not shutil.which(tool))
    if missing:
        pytest.fail(f"missing tools: apt-get install {' '.join(missing)}")


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest, runtime: str, short_path: Path) -> Iterator[Dockerd]:
    """A dockerd that knows the runtime under test and has the image."""
    directory = short_path / "d"
    directory.mkdir()
    with dockerd(directory, runtimes_for(request, runtime)) as running:
        build_image(Docker(running, runtime, docker_program()), short_path / "image")
        yield running


def runtimes_for(request: pytest.FixtureRequest, runtime: str) -> dict[str, Path]:
    """What daemon.json has to know of the runtime under test."""
    return {"cloche": request.getfixturevalue("cloche_program")} if runtime == "cloche" else {}


def docker_program() -> str:
    """Debian's docker where it is installed: an other one in PATH may be of another release."""
    return "/usr/bin/docker" if os.access("/usr/bin/docker", os.X_OK) else "docker"


@pytest.fixture
def docker(engine: Dockerd, runtime: str) -> Iterator[Docker]:
    """The docker command line; what the test makes with it is removed after it."""
    docker = Docker(engine, runtime, docker_program())
    yield docker
    docker.clean_up()


@pytest.fixture
def all_capabilities(docker: Docker, runtime: str) -> int:
    """The mask of all that dockerd gives away.

    Skips where the host's own root lacks one and the container gets no other root.
    """
    version = docker("version", "--format", "{{.Server.Version}}").output
    mask = all_capabilities_mask(version, docker.engine.pid)
    missing = mask & ~bounding_set()
    if missing and runtime in SHARED_KERNEL_RUNTIMES:
        pytest.skip(f"root on this host lacks capabilities {missing:#x}, so {runtime} has none")
    return mask


@pytest.fixture(scope="module")
def shared(engine: Dockerd, runtime: str) -> Iterator[Docker]:
    """The docker command line of what the tests of one module share."""
    docker = Docker(engine, runtime, docker_program())
    yield docker
    docker.clean_up()


@pytest.fixture(scope="module")
def idle(shared: Docker) -> str:
    """A container that does nothing, for tests that only look at it or exec in it."""
    return shared.start("--init", IMAGE, "sleep", "1000")
