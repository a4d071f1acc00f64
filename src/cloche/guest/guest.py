"""The guest that VMs boot now: found and checked with a handful of system calls.

Imported on the start path: os, json and pathlib only (typing and dataclasses would cost 3 and
9 ms). Building a guest is in cloche.guest.build.

    <data root>/guests/<key>/{vmlinux,initramfs,manifest.json}
    <data root>/guests/current -> <key>
"""

from __future__ import annotations

import json
import os
from pathlib import Path

# Raised when something other than kernel and agent changes what is built (the wanted modules,
# the layout of the initramfs, the manifest): a guest of another recipe is built anew.
RECIPE = 1


class Guest:
    """A kernel and an initramfs that belong together. Not to be changed once made.

    *key* is 16 hex digits of the SHA-256 over both files; *manifest* is what manifest.json says
    about their making.
    """

    __slots__ = ("directory", "initramfs", "kernel_release", "key", "manifest", "vmlinux")

    def __init__(self, directory: Path, manifest: dict[str, object]) -> None:
        self.directory = directory
        self.manifest = manifest
        self.key = str(manifest["key"])
        self.kernel_release = str(manifest["kernel_release"])
        self.vmlinux = directory / "vmlinux"
        self.initramfs = directory / "initramfs"


def guests_root(data_root: Path) -> Path:
    """The folder of all guests."""
    return data_root / "guests"


def current_guest(data_root: Path) -> Guest | None:
    """The guest that new VMs boot, or None when `cloche setup` has made none (or none whole)."""
    root = guests_root(data_root)
    try:
        return load_guest(root / os.readlink(root / "current"))
    except OSError:
        return None


def load_guest(directory: Path) -> Guest | None:
    """The guest in *directory*, or None when it is not whole or of another recipe."""
    try:
        manifest = json.loads((directory / "manifest.json").read_bytes())
        if manifest["recipe"] != RECIPE:
            return None
        guest = Guest(directory, manifest)
        os.stat(guest.vmlinux)
        os.stat(guest.initramfs)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return guest


def fingerprint(path: Path) -> dict[str, object]:
    """What tells cheaply that a file has changed: path, size in bytes, mtime in ns."""
    status = os.stat(path)
    return {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def is_current(guest: Guest, agent: Path | None) -> bool:
    """Whether the files that *guest* was made from are as they were; costs two stat(2) calls.

    *agent* is the agent's binary as found now. A source that is gone changes nothing: the guest
    has its own copy. A newer kernel package is not looked for here, `cloche setup --check` does.
    """
    return changed_source(guest, agent) is None


def changed_source(guest: Guest, agent: Path | None) -> str | None:
    """The path of the first file that is not as it was when *guest* was made, or None."""
    if agent is not None and _differs(guest.manifest.get("agent"), agent):
        return str(agent)
    kernel = guest.manifest.get("kernel")
    image = kernel.get("image") if isinstance(kernel, dict) else None
    if isinstance(image, dict) and _differs(image, Path(image["path"])):
        return str(image["path"])
    return None


def _differs(recorded: object, path: Path) -> bool:
    try:
        now = fingerprint(path)
    except OSError:
        return False
    if not isinstance(recorded, dict):
        return True
    return any(recorded.get(name) != value for name, value in now.items())
