"""A frozen QEMU of the tests' own, to be damaged and repaired; and what can be seen of a QEMU."""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cloche.guest.guest import current_guest
from cloche.model.config import load_settings
from cloche.vmm.frozen import frozen_image
from cloche.vmm.ptrace import Thread
from cloche.vmm.script import SCRIPT

from . import host
from .bundles import Bundle
from .runtime import Container, Runtime

SMALL = 64 << 20
"""The limit of a container that gets the smallest VM, whose template is made in the least time."""

_STEP = struct.Struct("<8Q")


class FrozenQemu:
    """The frozen QEMU of the smallest VM, in a data folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._saved: dict[Path, bytes] = {}

    @property
    def folder(self) -> Path:
        """Where it lies."""
        (template,) = self.root.glob("templates/microvm-*")
        return template / "frozen"

    @property
    def image(self) -> Path:
        """QEMU's process."""
        return self.folder / "process"

    def keep(self) -> None:
        """Remember it as it is now, less its memory, which nothing may write to."""
        self._saved = {path: path.read_bytes() for path in (self.image, self._manifest)}

    def repair(self) -> None:
        """Make it what it was."""
        self.folder.mkdir(exist_ok=True)
        for path, data in self._saved.items():
            if not path.exists() or path.read_bytes() != data:
                path.write_bytes(data)
        # Nobody is to read it while the next test does something to it.
        frozen_image(str(self.folder)).note_known()

    @property
    def _manifest(self) -> Path:
        return self.folder / "manifest.json"

    @property
    def manifest(self) -> dict[str, Any]:
        """What it was made for."""
        found: dict[str, Any] = json.loads(self._manifest.read_text())
        return found

    def write_manifest(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Have *change* change the manifest."""
        manifest = self.manifest
        change(manifest)
        self._manifest.write_text(json.dumps(manifest))

    def write(self, offset: int, data: bytes) -> None:
        """Put *data* into the image."""
        with self.image.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def steps(self) -> dict[int, tuple[int, ...]]:
        """Offset in the image and words of each step of the main thread."""
        with self.image.open("rb") as file:
            _, size, begin = struct.unpack("<8sQQ", file.read(24))
            file.seek(0)
            script = file.read(size)
        found: dict[int, tuple[int, ...]] = {}
        offset = begin - SCRIPT
        while offset + _STEP.size <= size and any(words := _STEP.unpack_from(script, offset)):
            found[offset] = words
            offset += _STEP.size
        return found

    def replace_step(self, offset: int, *words: int) -> None:
        """Have the step at *offset* be a call of the first word, with the others as arguments."""
        self.write(offset, _STEP.pack(*words, *[0] * (8 - len(words))))


def own_data_root(root: Path) -> Path:
    """Make *root* a data folder with the guest of the machine's, and no templates."""
    guest = current_guest(load_settings().data_root)
    assert guest is not None, "run `cloche setup` first"
    root.mkdir()
    (root / "guests").symlink_to(Path(guest.directory).parent)
    if (agents := Path(load_settings().data_root, "agents")).is_dir():
        (root / "agents").symlink_to(agents)
    return root


def limited(bundle: Bundle, memory: int = SMALL) -> Bundle:
    """*bundle* in a VM for so much memory."""
    bundle.linux["resources"] = {"memory": {"limit": memory}}
    return bundle


def made_by_a_start(program: Path, root: Path, folder: Path) -> tuple[FrozenQemu, str]:
    """The template and the frozen QEMU that a first start of a *program* makes, and its warnings.

    They lie in *folder*; *root* is of the container.
    """
    frozen = FrozenQemu(own_data_root(folder / "data"))
    runtime = Runtime(program, folder / "cloche", {"CLOCHE_DATA_ROOT": str(frozen.root)})
    bundle = limited(Bundle(folder / "bundle", root))
    assert runtime.run(bundle.sh("echo made")).output == "made"
    told = warnings(runtime)
    runtime.clean_up()
    return frozen, told


def qemu(container: Container) -> int:
    """The pid of its QEMU."""
    return host.qemu_of(container.runtime.root, container.id)


def command_line(pid: int) -> list[str]:
    """What ps(1) shows."""
    return Path(f"/proc/{pid}/cmdline").read_text().removesuffix("\0").split("\0")


def is_thawed(container: Container) -> bool:
    """Whether its QEMU was frozen once."""
    return "-thawed" in command_line(qemu(container))


def status(pid: int, *names: str, thread: int | None = None) -> dict[str, str]:
    """These lines of /proc/PID/status, of the main thread or of *thread*."""
    text = Path(f"/proc/{pid}/task/{thread or pid}/status").read_text()
    lines = dict(line.split(":", 1) for line in text.splitlines())
    return {name: lines[name].strip() for name in names}


def threads(pid: int) -> list[int]:
    """Its threads, in the order in which they were made."""
    return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))


def open_files(pid: int, *, without: Sequence[str] = ()) -> list[str]:
    """What its descriptors are, sorted; of sockets and pipes only that, and none of *without*."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        target = re.sub(r":\[\d+\]$", "", os.readlink(f"/proc/{pid}/fd/{name}"))
        if not any(target.startswith(each) for each in without):
            found.append(target)
    return sorted(found)


def has_ended(root: Path) -> bool:
    """Whether no process has *root* in its command line."""
    return host.processes(root) == []


def warnings(cloche: Runtime) -> str:
    """All warnings until now, which are forgotten."""
    found = "\n".join(cloche.messages("warning"))
    cloche.log.unlink(missing_ok=True)
    return found


@contextlib.contextmanager
def stopped(tid: int) -> Iterator[Thread]:
    """A thread of QEMU's, to be asked."""
    thread = Thread(tid)
    thread.stop()
    try:
        yield thread
    finally:
        thread.release()
