"""What those find who enter the mount namespace of the process that stands for a container.

Engines do so and expect the container's files there: `podman cp` writes to the paths it is
given, `podman top` reads /proc. The supervisor works with the host's files, though. Both fit into
one namespace: whoever enters one gets what is mounted on top of its root (setns(2) ends in the
kernel's mntns_install, which follows mounts down), while a process that is there already keeps the
root it has. So the container's root is mounted over `/`, and the supervisor sees nothing of it.

What exists in the guest only (tmpfs, /proc, /dev …) is an empty read-only file system here: what
is copied there fails, instead of landing where nobody looks.

The files are bound from the share. What is mounted upon them here must not arrive there, where the
guest would find it: they are slaves of it.
"""

from __future__ import annotations

import os

from cloche.base import syscalls
from cloche.base.quick import suppress

GUEST_ONLY = "cloche-guest-only"
PROC = "/proc"


class View:
    """The container's files as seen from the host; made in the caller's mount namespace."""

    def __init__(self, rootfs: str, scratch: str) -> None:
        """Mount *rootfs* over `/`; *scratch* is a path where a folder can be made for a moment."""
        os.mkdir(scratch, 0o700)
        try:
            syscalls.mount(rootfs, scratch, flags=syscalls.MS_BIND | syscalls.MS_REC)
            _settle(scratch, read_only=False)
            self._root = os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            syscalls.mount(scratch, "/", flags=syscalls.MS_MOVE)
        finally:
            os.rmdir(scratch)

    def bind(self, source: str, destination: str, *, read_only: bool) -> bool:
        """Show the host's *source* at *destination*; False where that does not exist."""
        target = self.open(destination)
        if target < 0:
            return False
        path = f"/proc/self/fd/{target}"
        with suppress(OSError):  # a folder over a file; the guest has told by now
            syscalls.mount(source, path, flags=syscalls.MS_BIND | syscalls.MS_REC)
            if (mounted := self.open(destination)) >= 0:
                _settle(f"/proc/self/fd/{mounted}", read_only=read_only)
                os.close(mounted)
        os.close(target)
        return True

    def hide(self, destination: str) -> None:
        """Show an empty read-only folder at *destination*, if there is one."""
        target = self.open(destination)
        if target < 0:
            return
        flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV
        with suppress(OSError):  # on a file of that name nothing was mounted in the guest either
            syscalls.mount(GUEST_ONLY, f"/proc/self/fd/{target}", "tmpfs", flags, "size=0")
        os.close(target)

    def open(self, path: str) -> int:
        """A descriptor of *path*, symbolic links followed inside the root only; -1: none."""
        try:
            return syscalls.open_in_root(self._root, path)
        except OSError:
            return -1


def _settle(path: str, *, read_only: bool) -> None:
    """Let what is mounted upon the new mount *path* stay there."""
    syscalls.mount("", path, flags=syscalls.MS_REC | syscalls.MS_SLAVE)
    if read_only:
        flags = syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY
        syscalls.mount("", path, flags=flags)
