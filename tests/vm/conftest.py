"""Fixtures, named by what they have reached: bundle → created → running → stopped.

Every test has a root folder of its own, and after every test nothing may be left of its
containers: no process, mount, cgroup or directory. A VM is a frozen QEMU, thawed, unless a test
asks for other ways to start (see ``starts``).
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from cloche.base import syscalls
from host.conftest import namespace

from .bundles import Bundle, build_root
from .runtime import Container, Runtime

__all__ = ["namespace"]

_PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "runc": "runc",
    "cp": "coreutils",
}
STARTS = {
    "thawed": {},
    "restored": {"CLOCHE_FREEZE": "off"},
    "cold": {"CLOCHE_TEMPLATE": "off"},
    "q35": {"CLOCHE_MACHINE": "q35"},
    "q35-restored": {"CLOCHE_MACHINE": "q35", "CLOCHE_FREEZE": "off"},
    "q35-cold": {"CLOCHE_MACHINE": "q35", "CLOCHE_TEMPLATE": "off"},
}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add logs and the containers' files to the report of a failed test."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Runtime):
                report.sections.append((str(value.program), value.diagnostics()))
    return report


def _program() -> Path:
    """The cloche command under test: as told, else beside this Python, else in PATH."""
    beside = Path(sys.executable).parent / "cloche"
    told = os.environ.get("CLOCHE_PROGRAM")
    found = told or (str(beside) if beside.exists() else shutil.which("cloche"))
    if found is None or not os.access(found, os.X_OK):
        pytest.fail(f"no cloche command ({found}); install it, or name it with $CLOCHE_PROGRAM")
    return Path(found).absolute()


@pytest.fixture(scope="session")
def program() -> Path:
    """The cloche command, on a machine that can run it."""
    if os.geteuid() != 0:
        pytest.fail("VMs are started as root")
    missing = sorted(package for tool, package in _PACKAGES.items() if not shutil.which(tool))
    if missing:
        pytest.fail(f"missing tools: apt-get install {' '.join(missing)}")
    # As containerd's shim is: what create leaves behind becomes our child when it has returned.
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    return _program()


@pytest.fixture(scope="session")
def busybox_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system that bundles are copied from; nothing may write there."""
    directory = tmp_path_factory.mktemp("busybox") / "rootfs"
    build_root(directory)
    return directory


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: pytest's own are so long that messages cannot be read."""
    directory = Path(tempfile.mkdtemp(prefix="cloche-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def data(folder: Path) -> Path:
    """A folder on the host, to be mounted."""
    data = folder / "data"
    (data / "sub").mkdir(parents=True)
    (data / "file").write_text("from the host\n")
    return data


@pytest.fixture
def new_bundle(folder: Path, busybox_root: Path) -> Callable[[], Bundle]:
    """Makes bundles."""

    def make() -> Bundle:
        return Bundle(folder / f"bundle{len(list(folder.glob('bundle*')))}", busybox_root)

    return make


@pytest.fixture
def bundle(new_bundle: Callable[[], Bundle]) -> Bundle:
    """A bundle whose program does nothing."""
    return new_bundle().args("sleep", "1000")


@pytest.fixture
def cloche(request: pytest.FixtureRequest, program: Path, folder: Path) -> Iterator[Runtime]:
    """The cloche command; fails afterwards if anything is left of what it made."""
    runtime = Runtime(program, folder / "cloche", STARTS[getattr(request, "param", "thawed")])
    yield runtime
    runtime.clean_up()


@pytest.fixture
def runc(folder: Path) -> Iterator[Runtime]:
    """runc, to compare with."""
    runtime = Runtime(Path("/usr/sbin/runc"), folder / "runc", {})
    yield runtime
    runtime.clean_up()


@pytest.fixture
def created(cloche: Runtime, bundle: Bundle) -> Container:
    """A container that waits for `start`."""
    return cloche.create(bundle)


@pytest.fixture
def running(created: Container) -> Container:
    """A container whose program runs."""
    created.start()
    return created


@pytest.fixture
def stopped(running: Container) -> Container:
    """A container whose program was killed."""
    running.end()
    return running


@pytest.fixture(scope="module")
def idle(
    program: Path, busybox_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Container]:
    """A running container that the tests of one module share, to look at or to exec in."""
    directory = tmp_path_factory.mktemp("idle")
    runtime = Runtime(program, directory / "cloche", {})
    bundle = Bundle(directory / "bundle", busybox_root).args("sleep", "1000")
    yield runtime.start(bundle)
    runtime.clean_up()
