"""What fails half way is undone, or told: above all where the state's file system is full."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.dockerd import wait_until
from engine.patience import PATIENCE_SECONDS

from . import host
from .bundles import Bundle
from .runtime import Container, Runtime

FULL = "state.json: cannot write it: no space left on device"


class Disk:
    """A small file system that all containers' state is on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        """Leave no room."""
        with contextlib.suppress(OSError), self._filler.open("wb") as file:
            file.write(bytes(1 << 22))

    def empty(self) -> None:
        """There is room again."""
        self._filler.unlink(missing_ok=True)


@pytest.fixture
def disk(cloche: Runtime, folder: Path) -> Iterator[Disk]:
    path = folder / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", path], check=True)
    cloche.root = path / "root"
    disk = Disk(path)
    yield disk
    disk.empty()
    cloche.clean_up()
    subprocess.run(["umount", path], check=True)


@pytest.fixture
def ticking(disk: Disk, running: Container) -> Container:
    """A container whose program runs, on that disk."""
    return running


def test_pause(disk: Disk, ticking: Container) -> None:
    cloche = ticking.runtime
    disk.fill()
    assert FULL in cloche.fails("pause", ticking.id)
    assert ticking.status == "running"
    assert ticking.sh("echo it runs").output == "it runs"
    assert "container not paused" in cloche.fails("resume", ticking.id)
    disk.empty()
    cloche("pause", ticking.id)
    assert ticking.status == "paused"


def test_resume(disk: Disk, ticking: Container) -> None:
    cloche = ticking.runtime
    cloche("pause", ticking.id)
    disk.fill()
    assert FULL in cloche.fails("resume", ticking.id)
    assert ticking.status == "paused"
    assert "cannot exec in a paused container" in cloche.fails("exec", ticking.id, "true", code=255)
    # An exec all the same is frozen: nothing of the container runs.
    client = cloche.popen("exec", "--ignore-paused", ticking.id, "echo", "hello")
    disk.empty()
    cloche("resume", ticking.id)
    assert ticking.status == "running"
    assert client.communicate(timeout=PATIENCE_SECONDS)[0] == b"hello\n"


def test_what_writes_no_state(disk: Disk, ticking: Container) -> None:
    cloche = ticking.runtime
    disk.fill()
    assert ticking.sh("echo fine").output == "fine"
    cloche("update", "--pids-limit", "33", ticking.id)
    assert ticking.sh("cat /sys/fs/cgroup/pids.max").output == "33"
    assert len(cloche("ps", ticking.id).lines) == 2
    ticking.end()
    cloche("delete", ticking.id)
    disk.empty()
    assert cloche.leftovers() == []


@pytest.mark.parametrize("verb", ["create", "run"])
def test_a_container_that_cannot_be_kept(
    disk: Disk, cloche: Runtime, bundle: Bundle, verb: str
) -> None:
    disk.fill()
    message = cloche.fails(verb, "--bundle", bundle.save(), cloche.new_id())
    assert "no space left on device" in message
    disk.empty()
    assert cloche.leftovers() == []


def test_a_container_of_a_pod_that_cannot_be_kept(
    disk: Disk, ticking: Container, new_bundle: Callable[[], Bundle]
) -> None:
    cloche = ticking.runtime
    bundle = new_bundle().args("sleep", "1000")
    for namespace in bundle.linux["namespaces"]:
        if namespace["type"] in ("ipc", "network"):
            kind = {"network": "net"}.get(namespace["type"], namespace["type"])
            namespace["path"] = f"/proc/{ticking.pid}/ns/{kind}"
    script = f"dd if=/dev/zero of={disk.path}/filler bs=64k; true"
    bundle.config["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}
    name = cloche.new_id()
    message = cloche.fails("create", "--bundle", bundle.save(), name)
    assert "no space left on device" in message
    disk.empty()
    assert not (cloche.root / name).exists()
    del bundle.config["hooks"]
    # Nothing of it is left in the guest: the name can be had again.
    null = subprocess.DEVNULL
    again = cloche.popen("create", "--bundle", bundle.save(), name, stdout=null, stderr=null)
    assert again.wait(PATIENCE_SECONDS) == 0
    cloche("delete", "--force", name)


@pytest.mark.parametrize("verb", ["create", "run"])
@pytest.mark.parametrize("name", ["cloche", "runc"])
def test_a_pid_file_that_cannot_be_written(
    request: pytest.FixtureRequest, bundle: Bundle, verb: str, name: str
) -> None:
    """The container is not to stay behind of a command that failed."""
    runtime: Runtime = request.getfixturevalue(name)
    container_id = runtime.new_id()
    flags = ["--detach"] if verb == "run" else []
    file = "/does/not/exist/pid"
    null = subprocess.DEVNULL
    command = (verb, *flags, "--pid-file", file, "--bundle", bundle.save(), container_id)
    client = runtime.popen(*command, stdout=null, stderr=null)
    assert client.wait(PATIENCE_SECONDS) == 1
    wait_until(lambda: not (runtime.root / container_id).exists(), "the container has gone")
    wait_until(lambda: host.processes(runtime.root) == [], "no process is left")
