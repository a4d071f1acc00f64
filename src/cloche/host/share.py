"""What the guest sees of the host: bind mounts below one directory, exported over 9p.

They are made in the supervisor's own mount namespace, so they vanish with it and are never seen
on the host. The directory is a shared mount, so that what is bound later reaches QEMU too. It is a
read-only one: a guest that could move its folders, and put symbolic links in their place, would
have us make and remove what lies elsewhere on the host.
"""

from __future__ import annotations

import os
import stat

from cloche.base import syscalls
from cloche.base.errors import ClocheError
from cloche.base.quick import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.host.idmap import Ids
    from cloche.model.plan_mounts import Bind

GUEST_SHARE = "/run/share"


class Share:
    """The exported directory of one sandbox."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        # The same files by a mount that only we have, where mount points are made.
        self._own = directory

    def enter(self) -> None:
        """Leave the host's mount namespace (mounts still arrive from it) and set the share up."""
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.follow_host_mounts()
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        # A tmpfs of our own: mount points made in it leave nothing behind on the host.
        syscalls.mount("cloche", self.directory, "tmpfs", data="mode=0755,size=1m")
        self._own = f"/proc/self/fd/{syscalls.open_tree(self.directory, recursive=False)}"
        read_only = syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY
        syscalls.mount("", self.directory, flags=read_only)
        syscalls.mount("", self.directory, flags=syscalls.MS_SHARED)

    def open_device(self, number: tuple[int, int], *, read_only: bool) -> int:
        """Open the host's block device of that number; ClocheError where there is none.

        Through a node of our own: the host's /dev may have none, and other places refuse them.
        """
        path = os.path.join(self._own, ".device")
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(*number))
        try:
            return os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        except OSError as error:
            raise ClocheError(
                f"block device {number[0]}:{number[1]} of the host: "
                f"{(error.strerror or '').lower()}",
                hint="$.linux.devices or a mount's source in config.json names it",
            ) from None
        finally:
            os.unlink(path)

    def bind(self, source: str, name: str, *, recursive: bool = True) -> str:
        """Bind the host's *source* (a folder or file) at *name*; returns the path in the guest."""

        def attach(target: str) -> None:
            flags = syscalls.MS_BIND | (syscalls.MS_REC if recursive else 0)
            syscalls.mount(source, target, flags=flags)

        return self._attach(name, f"bind {source}", attach, is_dir=os.path.isdir(source))

    def bind_mapped(self, source: str, name: str, ids: Ids, *, recursive: bool, deep: bool) -> str:
        """As bind, with owners mapped by *ids*; *deep*: in mounts below the source too."""
        from cloche.host.idmap import bind_mapped

        def attach(target: str) -> None:
            bind_mapped(source, target, ids, recursive=recursive, deep=deep)

        return self._attach(name, f"map ids of {source}", attach, is_dir=os.path.isdir(source))

    def overlay(self, options: str, name: str) -> str:
        """Mount an overlay of folders of the host at *name*; *options* as mount(8) has them."""

        def attach(target: str) -> None:
            syscalls.mount("overlay", target, "overlay", data=options)

        return self._attach(name, f"mount an overlay ({options})", attach, is_dir=True)

    def _attach(self, name: str, what: str, attach: Callable[[str], None], *, is_dir: bool) -> str:
        point = os.path.join(self._own, name)
        try:
            if is_dir:
                os.makedirs(point, exist_ok=True)
            else:
                os.makedirs(os.path.dirname(point), exist_ok=True)
                os.close(os.open(point, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC))
            attach(os.path.join(self.directory, name))
        except OSError as error:
            cause = (error.strerror or "").lower()
            raise ClocheError(f"share: cannot {what}: {cause}") from None
        return os.path.join(GUEST_SHARE, name)

    def add(self, bind: Bind, name: str) -> str:
        """Put what *bind* says at *name*; returns the path in the guest."""
        if bind.overlay:
            return self.overlay(bind.overlay, name)
        if bind.ids:
            deep = bind.ids_recursive
            return self.bind_mapped(
                bind.source, name, bind.ids, recursive=bind.recursive, deep=deep
            )
        return self.bind(bind.source, name, recursive=bind.recursive)

    def attach(self, tree: int, name: str) -> str:
        """As bind, of what another process has opened with open_tree; *tree* is closed."""

        def attach(target: str) -> None:
            syscalls.move_mount(tree, target)

        try:
            is_dir = stat.S_ISDIR(os.fstat(tree).st_mode)
            return self._attach(name, f"mount {name}", attach, is_dir=is_dir)
        finally:
            os.close(tree)

    def detach(self, folder: str) -> None:
        """Let go of all that was bound or attached below *folder*."""
        path = os.path.join(self._own, folder)
        for name in os.listdir(path) if os.path.isdir(path) else []:
            point = os.path.join(path, name)
            with suppress(OSError):  # what is not mounted is removed all the same
                syscalls.umount(os.path.join(self.directory, folder, name), syscalls.MNT_DETACH)
            with suppress(OSError):
                os.rmdir(point) if os.path.isdir(point) else os.unlink(point)
        with suppress(OSError):
            os.rmdir(path)
