"""Id-mapped mounts (mount_setattr(2)), made on the host below the share.

The guest sees the mapped owners over 9p, and QEMU maps them back when it sets them.
"""

from __future__ import annotations

import os

from cloche.base import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    # Id in the file system, id as seen, how many.
    Range = tuple[int, int, int]
    Ids = tuple[Sequence[Range], Sequence[Range]]  # users, groups

# An owner that no file has: it stands for root where the mapping names none. QEMU makes files as
# root, then gives them to whom the guest says.
NOBODYS = (1 << 32) - 2


def bind_mapped(source: str, target: str, ids: Ids, *, recursive: bool, deep: bool) -> None:
    """Bind *source* at *target* with its owners mapped; OSError where the kernel cannot.

    *recursive*: with the mounts below it; *deep*: with the owners mapped there too.
    """
    uids, gids = ids
    namespace = _user_namespace(with_root(uids), with_root(gids))
    tree = -1
    try:
        tree = syscalls.open_tree(source, recursive=recursive)
        syscalls.map_ids(tree, namespace, recursive=deep)
        syscalls.move_mount(tree, target)
    finally:
        os.close(namespace)
        if tree >= 0:
            os.close(tree)


def maps_root(ranges: Sequence[Range]) -> bool:
    """Whether some owner is seen as root."""
    return any(seen == 0 and size > 0 for _, seen, size in ranges)


def with_root(ranges: Sequence[Range]) -> list[Range]:
    """*ranges*, with an owner that is nobody's seen as root if none is."""
    return [*ranges] if maps_root(ranges) else [*ranges, (NOBODYS, 0, 1)]


def _user_namespace(uids: Sequence[Range], gids: Sequence[Range]) -> int:
    """A descriptor of a new user namespace with these mappings (user_namespaces(7))."""
    ready_end, ready = os.pipe()
    hold_end, hold = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(hold)
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            os.write(ready, b"r")
            os.read(hold_end, 1)
        finally:
            os._exit(0)
    os.close(ready)
    os.close(hold_end)
    try:
        if not os.read(ready_end, 1):
            raise OSError(syscalls.EINVAL, "no user namespace can be made")
        for name, ranges in (("uid_map", uids), ("gid_map", gids)):
            lines = "".join(f"{inside} {outside} {size}\n" for inside, outside, size in ranges)
            with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
                file.write(lines)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready_end)
        os.close(hold)
        os.waitpid(pid, 0)
