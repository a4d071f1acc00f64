"""What a bind mount has from the mounts that its source lies on (mount(2), MS_BIND).

A bind mount is a copy of a mount, flags and all. In the guest all that is shared lies on one mount,
which has none, so they are named there.
"""

from __future__ import annotations

import os
import posixpath

from cloche.base.typed import Struct
from cloche.model.mounts import (
    MS_BIND,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_NOSYMFOLLOW,
    MS_RDONLY,
    MS_REC,
    MS_RELATIME,
    MS_REMOUNT,
    MS_STRICTATIME,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_SAFETY = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOSYMFOLLOW
_TIMES = MS_NOATIME | MS_NODIRATIME | MS_RELATIME | MS_STRICTATIME
# f_flag of statvfs(3): the other flags are as in mount(2).
_ST_NOSYMFOLLOW, _ST_RELATIME = 8192, 4096
_ST_AS_MS = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME
_BY_NAME = {
    b"ro": MS_RDONLY,
    b"nosuid": MS_NOSUID,
    b"nodev": MS_NODEV,
    b"noexec": MS_NOEXEC,
    b"nosymfollow": MS_NOSYMFOLLOW,
}
MOUNTS = "/proc/self/mountinfo"


class Below(Struct):
    """A mount of the host's below a source, where that one's *flags* (MS_*) do not do."""

    path: str  # relative to the source
    flags: int


def flags_at(path: str) -> int:
    """MS_* flags of the mount that *path* lies on, as far as they differ from a plain one's.

    OSError as of statvfs(3).
    """
    found = os.statvfs(path).f_flag
    flags = found & _ST_AS_MS
    if found & _ST_NOSYMFOLLOW:
        flags |= MS_NOSYMFOLLOW
    if not found & (MS_NOATIME | _ST_RELATIME):
        flags |= MS_STRICTATIME
    return flags


def bind_flags(named: int, source: int, *, is_locked: bool) -> int:
    """MS_* flags of a bind mount whose options are *named*, of a mount that has *source*.

    As with runc: flags that are named replace the others, but for those about access times if none
    of these is named. What is read-only on the host stays so. *is_locked*: in a user namespace,
    which may not take any flag away (mount_namespaces(7)).
    """
    if named & MS_REMOUNT:
        return named
    if not named & ~(MS_BIND | MS_REC):
        return named | source
    kept = MS_RDONLY | (_SAFETY if is_locked else 0)
    times = 0 if named & _TIMES else _TIMES
    return named | source & (kept | times)


def read_mounts() -> bytes:
    """This process's mounts, for mounts_below."""
    with open(MOUNTS, "rb") as file:
        return file.read()


def mounts_below(folder: str, mounts: bytes) -> list[Below]:
    """Those of *mounts* (proc_pid_mountinfo(5)) below *folder* whose flags forbid something but to
    write; of mounts at one place all flags count.
    """
    prefix = _escaped(os.path.realpath(folder).rstrip("/") + "/")
    if b" " + prefix not in mounts:
        return []
    found: dict[bytes, int] = {}
    for line in mounts.splitlines():
        fields = line.split(b" ")
        place = fields[4]
        if place.startswith(prefix) and place != prefix:
            flags = sum(_BY_NAME.get(option, 0) for option in fields[5].split(b","))
            path = place[len(prefix) :]
            found[path] = found.get(path, 0) | flags
    paths = [(os.fsdecode(_unescaped(path)), flags) for path, flags in sorted(found.items())]
    return [Below(path, flags) for path, flags in paths if flags & _SAFETY]


def uncovered(below: Sequence[Below], top: int) -> list[Below]:
    """Those of *below* that need a mount of their own under one with the flags *top*.

    Each has the flags of what is above it as well.
    """
    covered = {"": top & (_SAFETY | MS_RDONLY)}
    for each in below:
        above = posixpath.dirname(each.path)
        while above not in covered:
            above = posixpath.dirname(above)
        if each.flags & _SAFETY & ~covered[above]:
            covered[each.path] = covered[above] | each.flags
    return [Below(path, flags) for path, flags in covered.items() if path]


# As the kernel writes them there.
_ESCAPES = {b"\\": b"\\134", b" ": b"\\040", b"\t": b"\\011", b"\n": b"\\012"}


def _escaped(path: str) -> bytes:
    text = os.fsencode(path)
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text


def _unescaped(text: bytes) -> bytes:
    for character, escape in reversed(_ESCAPES.items()):
        text = text.replace(escape, character)
    return text
