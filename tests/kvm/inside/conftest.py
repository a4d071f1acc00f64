"""Fixtures of the tests in the outer VM, by stage: guest, bundle, command line, container."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloche.model.spec import default_spec

from .cloche import Cloche

# 100 MB and the guest's own needs make the smallest shape, 256 MiB.
MEMORY_LIMIT = 100_000_000


@pytest.fixture(scope="session")
def setup_output() -> str:
    """What `cloche setup` said: guest and default template are there afterwards."""
    return Cloche().run("setup").stdout


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian's busybox as a root file system; containers have it read-only.

    tools/busybox-image would make the same, but starts a program for each of 270 applets, which
    takes a quarter of a minute here.
    """
    folder = tmp_path_factory.mktemp("rootfs")
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        (folder / name).mkdir()
    shutil.copy("/bin/busybox", folder / "bin")
    applets = subprocess.run([folder / "bin/busybox", "--list"], stdout=subprocess.PIPE, check=True)
    for applet in set(applets.stdout.decode().split()) - {"busybox"}:
        (folder / "bin" / applet).hardlink_to(folder / "bin/busybox")
    return folder


class Bundle:
    """A folder with a config.json that `write` changes."""

    def __init__(self, folder: Path, rootfs: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = {**default_spec()}
        self.config["root"]["path"] = str(rootfs)
        self.config["process"]["terminal"] = False
        self.config["linux"]["resources"]["memory"] = {"limit": MEMORY_LIMIT}

    def write(self, *args: str) -> Bundle:
        """Let the container run *args*; other changes of `config` are written as well."""
        self.config["process"]["args"] = list(args)
        (self.folder / "config.json").write_text(json.dumps(self.config))
        return self

    def mount(self, source: Path, destination: str, *options: str) -> None:
        """Add a bind mount."""
        entry = {"type": "bind", "source": str(source), "destination": destination}
        self.config["mounts"].append({**entry, "options": ["bind", *options]})


@pytest.fixture
def bundle(tmp_path: Path, rootfs: Path) -> Bundle:
    """A bundle for the smallest shape."""
    return Bundle(tmp_path, rootfs)


@pytest.fixture
def cloche(setup_output: str) -> Iterator[Cloche]:
    """The command line, set up; whatever a test leaves behind is removed, and is its failure."""
    assert "accelerator: kvm" in setup_output
    runner = Cloche()
    yield runner
    left = runner.run("list", "--quiet").stdout.split()
    for container in left:
        runner.run("delete", "--force", container)
    assert (left, qemu_processes()) == ([], [])


@pytest.fixture
def idle(cloche: Cloche, tmp_path_factory: pytest.TempPathFactory, rootfs: Path) -> Iterator[str]:
    """The id of a running container that does nothing."""
    bundle = Bundle(tmp_path_factory.mktemp("idle"), rootfs).write("sleep", "1000")
    cloche.run("run", "--detach", "-b", bundle.folder, "idle")
    yield "idle"
    cloche.run("delete", "--force", "idle")


def qemu_processes() -> list[str]:
    """The command lines of all QEMUs that run in this VM."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path("/proc", entry, "cmdline").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        if b"qemu-system" in line.split(b"\0")[0]:
            found.append(line.replace(b"\0", b" ").decode())
    return found
