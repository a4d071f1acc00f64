"""The guest's initramfs: the agent, its modules, and nothing else.

The archive format is cpio "newc" (linux/Documentation/driver-api/early-userspace/
buffer-format.rst), uncompressed: decompression in a guest under TCG costs more than reading.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cloche.guest.modules import Module, module_name, read_module
from cloche.model.device_filter import usual_filter

_TRAILER = "TRAILER!!!"


class Entry(NamedTuple):
    """A file of the archive. *mode* holds type and permissions; *device* is (major, minor)."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str, mode: int = 0o755) -> Entry:
    """An empty folder."""
    return Entry(path, stat.S_IFDIR | mode)


def file(path: str, data: bytes, mode: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(path, stat.S_IFREG | mode, data)


def symlink(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def pack(entries: Iterable[Entry]) -> bytes:
    """The newc archive of *entries*: the same bytes for the same entries, in whatever order.

    Owners are root, times are 0, inode numbers count from 1; paths sort so that a folder comes
    before what is in it.
    """
    ordered = sorted(entries, key=lambda entry: entry.path.split("/"))
    parts = [_record(inode, entry) for inode, entry in enumerate(ordered, start=1)]
    parts.append(_record(0, Entry(_TRAILER, 0)))
    archive = b"".join(parts)
    return archive + bytes(-len(archive) % 512)


def _record(inode: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    header += bytes(-len(header) % 4)
    return header + entry.data + bytes(-len(entry.data) % 4)


def build_initramfs(agent: bytes, tree: Path, modules: Sequence[Module]) -> bytes:
    """The initramfs that starts *agent* as /init.

    /modules/load names the module files, one path a line, in load order; they are uncompressed,
    so that the agent can hand them to finit_module(2) as they are. /device-filter is the BPF
    program that most containers get, for the agent to have it loaded before it is asked for.
    """
    paths = [f"/modules/{module_name(module.path)}.ko" for module in modules]
    entries = [
        *(directory(name) for name in ("dev", "modules", "proc", "run", "sbin", "sys")),
        directory("tmp", 0o1777),
        # The kernel opens /dev/console for PID 1 before anything could mount devtmpfs.
        Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        file("init", agent, 0o755),
        # What the kernel executes when something in it asks for a module.
        symlink("sbin/modprobe", "/init"),
        file("device-filter", usual_filter()),
        file("modules/load", "".join(f"{path}\n" for path in paths).encode()),
    ]
    for path, module in zip(paths, modules, strict=True):
        entries.append(file(path.lstrip("/"), read_module(tree / module.path)))
    return pack(entries)
