"""What the image tests share: mounting an erofs image, layouts of every kind, leftovers."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloche.base.syscalls import mount, umount
from cloche.image.model import Image
from cloche.image.store import Store, list_images

TOOL = Path(__file__).parents[3] / "tools" / "busybox-image"
Resolve = Callable[..., Image]


def run(*argv: object, folder: Path | None = None) -> str:
    words = [str(word) for word in argv]
    return subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True).stdout


def can_mount_erofs() -> bool:
    subprocess.run(["modprobe", "--quiet", "erofs"], check=False)
    return "\terofs\n" in Path("/proc/filesystems").read_text()


@contextmanager
def mounted(image: Image, folder: Path) -> Iterator[Path]:
    """The files of an unpacked image, as the guest's kernel would show them."""
    assert image.erofs is not None
    if not can_mount_erofs():
        pytest.skip("this kernel has no erofs, not even as a module")
    device = run("losetup", "--find", "--show", "--read-only", image.erofs).strip()
    try:
        folder.mkdir(exist_ok=True)
        mount(device, str(folder), "erofs", 1)
        try:
            yield folder
        finally:
            umount(str(folder))
    finally:
        run("losetup", "--detach", device)


@contextmanager
def tmpfs(folder: Path, size: int) -> Iterator[Path]:
    """A file system of *size* bytes."""
    folder.mkdir()
    mount("tmpfs", str(folder), "tmpfs", 0, f"size={size}")
    try:
        yield folder
    finally:
        umount(str(folder))


def leftovers(store: Path) -> list[str]:
    """What an unpacking may not leave: work folders, locks, names of images that are not whole."""
    images = Store(store)
    whole = {image.digest.removeprefix("sha256:") for image in list_images(store)}
    found = set(os.listdir(images.images)) - {"sources", "locks", "work"} - whole
    return sorted(found) + os.listdir(images.work) + os.listdir(images.locks)


def add_layer(layout: Path, folder: Path, *options: str) -> None:
    run("umoci", "insert", "--image", f"{layout}:latest", *options, folder, "/")


def copy_of(layout: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(layout, tmp_path / "copy"))


def two_images(layout: Path, tmp_path: Path) -> Path:
    """A layout with "latest" and "date", which differ in their command."""
    folder = copy_of(layout, tmp_path)
    image = f"{folder}:latest"
    run("umoci", "config", "--image", image, "--tag", "date", "--config.cmd", "date")
    return folder


def write_index(folder: Path, index: dict[str, object]) -> None:
    """Put an image index between the layout and its manifest, as multi-platform builds do."""
    kind = "application/vnd.oci.image.index.v1+json"
    data = json.dumps(index | {"mediaType": kind}).encode()
    digest = hashlib.sha256(data).hexdigest()
    (folder / "blobs/sha256" / digest).write_bytes(data)
    entry = {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def make(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def load(file: Path) -> list[dict[str, object]]:
    value: list[dict[str, object]] = json.loads(file.read_text())
    return value


RESOLVE = """
import importlib, os, pkgutil, sys
from pathlib import Path
import cloche.image
from cloche.image.store import resolve

user, reference, store, *deadly = sys.argv[1:]

def report(line):
    print(line, flush=True)
    if deadly and deadly[0] in line:
        os.kill(os.getpid(), 9)

# The checkout may be in a folder, such as /root, that is closed to others: import it before.
for module in pkgutil.iter_modules(cloche.image.__path__):
    importlib.import_module(f"cloche.image.{module.name}")
os.setuid(int(user))
print(resolve(reference, Path(store), report).digest)
"""


def start(*argv: object, user: int = 0) -> subprocess.Popen[str]:
    """`resolve` in a process of its own: reference, store, report at which it kills itself."""
    words = [sys.executable, "-c", RESOLVE, *(str(word) for word in (user, *argv))]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True)


@contextmanager
def open_locked(store: Path) -> Iterator[Path]:
    """A work folder of a process that lives."""
    folder = make(store / "images/work/busy")
    fd = os.open(folder, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        os.close(fd)
