"""Mount options as mount(8) and runc spell them, resolved to what mount(2) takes."""

from __future__ import annotations

from cloche.base.typed import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_MANDLOCK = 64
MS_DIRSYNC = 128
MS_NOSYMFOLLOW = 256
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_REC = 16384
MS_SILENT = 32768
MS_POSIXACL = 1 << 16
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_I_VERSION = 1 << 23
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

# option: (flags to clear, flags to set). The list is runc's (libcontainer/specconv).
FLAGS = {
    "acl": (0, MS_POSIXACL),
    "async": (MS_SYNCHRONOUS, 0),
    "atime": (MS_NOATIME, 0),
    "bind": (0, MS_BIND),
    "defaults": (0, 0),
    "dev": (MS_NODEV, 0),
    "diratime": (MS_NODIRATIME, 0),
    "dirsync": (0, MS_DIRSYNC),
    "exec": (MS_NOEXEC, 0),
    "iversion": (0, MS_I_VERSION),
    "lazytime": (0, MS_LAZYTIME),
    "loud": (MS_SILENT, 0),
    "mand": (0, MS_MANDLOCK),
    "noacl": (MS_POSIXACL, 0),
    "noatime": (0, MS_NOATIME),
    "nodev": (0, MS_NODEV),
    "nodiratime": (0, MS_NODIRATIME),
    "noexec": (0, MS_NOEXEC),
    "noiversion": (MS_I_VERSION, 0),
    "nolazytime": (MS_LAZYTIME, 0),
    "nomand": (MS_MANDLOCK, 0),
    "norelatime": (MS_RELATIME, 0),
    "nostrictatime": (MS_STRICTATIME, 0),
    "nosuid": (0, MS_NOSUID),
    "nosymfollow": (0, MS_NOSYMFOLLOW),
    "rbind": (0, MS_BIND | MS_REC),
    "relatime": (0, MS_RELATIME),
    "remount": (0, MS_REMOUNT),
    "ro": (0, MS_RDONLY),
    "rw": (MS_RDONLY, 0),
    "silent": (0, MS_SILENT),
    "strictatime": (0, MS_STRICTATIME),
    "suid": (MS_NOSUID, 0),
    "symfollow": (MS_NOSYMFOLLOW, 0),
    "sync": (0, MS_SYNCHRONOUS),
}

PROPAGATION = {
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "rshared": MS_SHARED | MS_REC,
    "rslave": MS_SLAVE | MS_REC,
    "runbindable": MS_UNBINDABLE | MS_REC,
    "shared": MS_SHARED,
    "slave": MS_SLAVE,
    "unbindable": MS_UNBINDABLE,
}

# MOUNT_ATTR_* of mount_setattr(2). The access time modes are one field of several bits: to set
# one of them the whole field has to be cleared.
ATTR_RDONLY = 0x1
ATTR_NOSUID = 0x2
ATTR_NODEV = 0x4
ATTR_NOEXEC = 0x8
ATTR_ATIME = 0x70
ATTR_NOATIME = 0x10
ATTR_STRICTATIME = 0x20
ATTR_NODIRATIME = 0x80
ATTR_NOSYMFOLLOW = 0x200000

# option: (attributes to clear, attributes to set) on the mount and all below it.
RECURSIVE = {
    "ratime": (ATTR_ATIME, 0),
    "rdev": (ATTR_NODEV, 0),
    "rdiratime": (ATTR_NODIRATIME, 0),
    "rexec": (ATTR_NOEXEC, 0),
    "rnoatime": (ATTR_ATIME, ATTR_NOATIME),
    "rnodev": (0, ATTR_NODEV),
    "rnodiratime": (0, ATTR_NODIRATIME),
    "rnoexec": (0, ATTR_NOEXEC),
    "rnorelatime": (ATTR_ATIME, 0),
    "rnostrictatime": (ATTR_ATIME, 0),
    "rnosuid": (0, ATTR_NOSUID),
    "rnosymfollow": (0, ATTR_NOSYMFOLLOW),
    "rrelatime": (ATTR_ATIME, 0),
    "rro": (0, ATTR_RDONLY),
    "rrw": (ATTR_RDONLY, 0),
    "rstrictatime": (ATTR_ATIME, ATTR_STRICTATIME),
    "rsuid": (ATTR_NOSUID, 0),
    "rsymfollow": (ATTR_NOSYMFOLLOW, 0),
}

# Carried out by cloche.host.idmap; the mapping is another field's.
IDMAP = ("idmap", "ridmap")


class MountOptions(Struct):
    """What a list of options comes to."""

    flags: int  # MS_*
    propagation: int  # MS_SHARED … | MS_REC, or 0
    attributes_set: int  # MOUNT_ATTR_*, recursive
    attributes_clear: int
    tmpcopyup: bool
    data: str  # the rest, for the file system itself


def parse_options(options: Iterable[str]) -> MountOptions:
    """Resolve *options* in order; of contradicting ones the later wins, as with mount(8)."""
    flags = propagation = attributes_set = attributes_clear = 0
    tmpcopyup = False
    data: list[str] = []
    for option in options:
        if option in FLAGS:
            clear, put = FLAGS[option]
            flags = flags & ~clear | put
        elif option in PROPAGATION:
            propagation = PROPAGATION[option]
        elif option in RECURSIVE:
            clear, put = RECURSIVE[option]
            attributes_set = attributes_set & ~clear | put
            attributes_clear = attributes_clear & ~put | clear
        elif option in IDMAP:
            continue
        elif option == "tmpcopyup":
            tmpcopyup = True
        elif option:
            data.append(option)
    return MountOptions(
        flags, propagation, attributes_set, attributes_clear, tmpcopyup, ",".join(data)
    )
