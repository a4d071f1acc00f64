"""The guest that VMs boot now: found and checked with a handful of system calls.

Imported on the start path: os, zlib and json only (pathlib, typing and dataclasses would cost 3 to
9 ms each). Building a guest is in cloche.guest.build.

    <data root>/guests/<key>/{vmlinux,initramfs,manifest.json}
    <data root>/guests/current -> <key>
    <data root>/agents/<crc32 of its path>.json    the guest that an agent is in
"""

from __future__ import annotations

import os
import zlib

from cloche.base import fastjson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Raised when something other than kernel and agent changes what is built (the wanted modules,
# the layout of the initramfs, the manifest): a guest of another recipe is built anew.
RECIPE = 3


class Guest:
    """A kernel and an initramfs that belong together. Not to be changed once made.

    *key* is 16 hex digits of the SHA-256 over both files; *manifest* is what manifest.json says
    about their making (see docs/guest.md).
    """

    __slots__ = ("directory", "initramfs", "kernel_release", "key", "manifest", "vmlinux")

    def __init__(self, directory: str, manifest: dict[str, Any]) -> None:
        self.directory = directory
        self.manifest = manifest
        self.key: str = manifest["key"]
        self.kernel_release: str = manifest["kernel_release"]
        self.vmlinux = os.path.join(directory, "vmlinux")
        self.initramfs = os.path.join(directory, "initramfs")


def guests_root(data_root: str | os.PathLike[str]) -> str:
    """The folder of all guests."""
    return os.path.join(data_root, "guests")


def current_guest(data_root: str | os.PathLike[str]) -> Guest | None:
    """The guest that new VMs boot, or None when `cloche setup` has made none (or none whole)."""
    root = guests_root(data_root)
    try:
        return load_guest(os.path.join(root, os.readlink(os.path.join(root, "current"))))
    except OSError:
        return None


def guest_for(data_root: str | os.PathLike[str], agent: str | None) -> Guest | None:
    """The guest to boot with *agent*: the current one, or another of its kernel that has it.

    Installations that share a data root have an agent each, and each finds its own guest: one's
    start never makes the others build theirs anew. What is returned may be out of date (see
    `is_current`); None means that `cloche setup` has made no guest.
    """
    current = current_guest(data_root)
    if current is None or agent is None or is_current(current, agent):
        return current
    key = recorded_key(data_root, agent)
    other = load_guest(os.path.join(guests_root(data_root), key)) if key else None
    if other is None or other.manifest["kernel"] != current.manifest["kernel"]:
        return current
    return other


def agent_record(data_root: str | os.PathLike[str], agent: str) -> str:
    """The file that says which guest the agent at this path is in."""
    return os.path.join(data_root, "agents", f"{zlib.crc32(os.fsencode(agent)):08x}.json")


def recorded_key(data_root: str | os.PathLike[str], agent: str) -> str | None:
    """The key of the guest that *agent*, unchanged since, was built into; None if there is none."""
    try:
        with open(agent_record(data_root, agent), "rb") as file:
            record = fastjson.loads(file.read())
        return None if _differs(record["agent"], agent) else str(record["guest"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def load_guest(directory: str | os.PathLike[str]) -> Guest | None:
    """The guest in *directory*, or None when it is not whole or of another recipe."""
    try:
        with open(os.path.join(directory, "manifest.json"), "rb") as file:
            manifest = fastjson.loads(file.read())
        if manifest["recipe"] != RECIPE:
            return None
        guest = Guest(os.fspath(directory), manifest)
        for path, size in (
            (guest.vmlinux, manifest["vmlinux_size"]),
            (guest.initramfs, manifest["initramfs_size"]),
        ):
            if os.stat(path).st_size != size:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return guest


def hold_kernel(directory: str) -> None:
    """Keep the kernel in *directory* from being removed while this process lives.

    A VM that runs may ask for its modules at any time. One whose kernel is gone already gets none.
    """
    import fcntl

    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return


def fingerprint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What tells cheaply that a file has changed: path, size in bytes, mtime in ns."""
    status = os.stat(path)
    return {"path": os.fspath(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def is_current(guest: Guest, agent: str | None) -> bool:
    """Whether the files that *guest* was made from are as they were.

    Costs two stat(2) calls, and reading a small file where another installation made *guest*.

    *agent* is the agent's binary as found now. A source that is gone changes nothing: the guest
    has its own copy. A newer kernel package is not looked for here, `cloche setup --check` does.
    """
    return changed_source(guest, agent) is None


def changed_source(guest: Guest, agent: str | None) -> str | None:
    """The path of the first file that is not as it was when *guest* was made, or None."""
    if agent is not None and _differs(guest.manifest["agent"], agent):
        data_root = os.path.dirname(os.path.dirname(guest.directory))
        if recorded_key(data_root, agent) != guest.key:
            return agent
    image = guest.manifest["kernel"].get("image")
    if image is not None and _differs(image, image["path"]):
        return str(image["path"])
    return None


def other_than_configured(guest: Guest, configured: str) -> str | None:
    """What is wrong where *guest* has another kernel than the *configured* path; else None."""
    origin = guest.manifest["kernel"]
    # An image, or a folder of those below <data root>/kernels, where an image is unpacked too.
    used = {guest.manifest["kernel_directory"], (origin.get("image") or {}).get("path")}
    if os.path.normpath(configured) in used:
        return None
    return f"the configuration names the kernel {configured}, the guest has {origin['source']}"


def _differs(recorded: dict[str, Any], path: str) -> bool:
    try:
        now = fingerprint(path)
    except OSError:
        return False
    return any(recorded.get(name) != value for name, value in now.items())
