"""Users and groups of an image, read without ever leaving the image's root.

The rules of `USER` and `--user` are those of libcontainer's user package (user.go,
GetExecUser), which Docker, Podman and containerd share.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from cloche.base.errors import ConfigError, NotFoundError
from cloche.image.model import Accounts, Group, User

if TYPE_CHECKING:
    from pathlib import Path

SYS_OPENAT2 = 437  # the same number on every architecture (include/uapi/asm-generic/unistd.h)
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10
TABLE_LIMIT = 4 << 20  # bytes read of a passwd or group file: the image is not trusted
ID_LIMIT = (1 << 31) - 1  # libcontainer's maxID


class ResolvedUser(NamedTuple):
    """A user as numbers; *groups* holds *gid* and the supplementary ones, without doubles."""

    uid: int
    gid: int
    groups: tuple[int, ...]


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def _open_in_root(root: Path, path: str) -> int:
    """An O_PATH descriptor of *path*, found as a process whose root is *root* would (openat2(2)).

    O_PATH, because opening alone does something where a device or a fifo is in the file's place.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    how = _OpenHow(os.O_PATH | os.O_CLOEXEC, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        size = ctypes.c_size_t(ctypes.sizeof(how))
        fd = libc.syscall(
            ctypes.c_long(SYS_OPENAT2), folder, path.encode(), ctypes.byref(how), size
        )
    finally:
        os.close(folder)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"{root}/{path}")
    return int(fd)


def read_table(root: Path, path: str) -> str:
    """The text of the regular file *path* inside *root*; "" where there is none.

    Symbolic links are followed as they would be inside the container: never out of *root*.
    """
    try:
        fd = _open_in_root(root, path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return ""
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        with open(f"/proc/self/fd/{fd}", "rb") as file:
            return file.read(TABLE_LIMIT).decode(errors="replace")
    finally:
        os.close(fd)


def read_accounts(root: Path) -> Accounts:
    """The users and groups of the file system in *root*; lines that are not entries are skipped."""
    return Accounts(
        parse_passwd(read_table(root, "etc/passwd")), parse_group(read_table(root, "etc/group"))
    )


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else None


def parse_passwd(text: str) -> tuple[User, ...]:
    """The entries of a passwd(5) text."""
    users = []
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) < 4 or line.startswith("#"):
            continue
        uid, gid = _number(fields[2]), _number(fields[3])
        if uid is not None and gid is not None:
            users.append(User(fields[0], uid, gid))
    return tuple(users)


def parse_group(text: str) -> tuple[Group, ...]:
    """The entries of a group(5) text."""
    groups = []
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) < 3 or line.startswith("#"):
            continue
        gid = _number(fields[2])
        if gid is not None:
            members = fields[3].split(",") if len(fields) > 3 else []
            groups.append(Group(fields[0], gid, tuple(name for name in members if name)))
    return tuple(groups)


def resolve_user(text: str, accounts: Accounts) -> ResolvedUser:
    """The numbers of `user[:group]`, each a name or a number; "" is root.

    Supplementary groups are those which list the user, unless a group is named. Raises
    NotFoundError for an unknown name, ConfigError for a number out of range.
    """
    user_text, _, group_text = text.partition(":")
    user = _find_user(user_text or "0", accounts)
    if group_text:
        gid = _find_group(group_text, accounts)
        return ResolvedUser(user.uid, gid, (gid,))
    member_of = [group.gid for group in accounts.groups if user.name in group.members]
    return ResolvedUser(user.uid, user.gid, tuple(dict.fromkeys([user.gid, *member_of])))


def _find_user(text: str, accounts: Accounts) -> User:
    for user in accounts.users:
        if text in (user.name, str(user.uid)):
            return _in_range(user, text)
    uid = _number(text)
    if uid is None:
        raise NotFoundError(
            f"user {text!r}: not in the image's /etc/passwd",
            hint="name a user of the image, or a number: --user 1000",
        )
    return _in_range(User("", uid, 0), text)


def _in_range(user: User, text: str) -> User:
    if user.uid > ID_LIMIT or user.gid > ID_LIMIT:
        raise ConfigError(f"user {text!r}: ids go from 0 to {ID_LIMIT}", hint="use a smaller one")
    return user


def _find_group(text: str, accounts: Accounts) -> int:
    number = _number(text)
    gid = next((g.gid for g in accounts.groups if text in (g.name, str(g.gid))), number)
    if gid is None:
        raise NotFoundError(
            f"group {text!r}: not in the image's /etc/group",
            hint="name a group of the image, or a number: --user 1000:1000",
        )
    if gid > ID_LIMIT:
        raise ConfigError(f"group {text!r}: ids go from 0 to {ID_LIMIT}", hint="use a smaller one")
    return gid
