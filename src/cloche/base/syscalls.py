"""System calls that Python 3.11 lacks (unshare, setns, mount, prctl …), through _ctypes.

Imported on the start path: ctypes proper makes dozens of types that nobody here needs, 1.2 ms.
"""

from __future__ import annotations

import _ctypes
import os

CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SHARED = 0x100000
MS_SLAVE = 0x80000

MNT_DETACH = 0x2

EINVAL = 22  # errno proper is one more module to import

RESOLVE_IN_ROOT = 0x10
# The numbers of newer system calls are the same on every architecture.
_OPENAT2 = 437

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_SET_THP_DISABLE = 41

ADDR_NO_RANDOMIZE = 0x0040000

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_IDMAP = 0x100000
# The same on every architecture (asm-generic/unistd.h); glibc 2.36 is the first to name them.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _ULong(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """What is longer than an int, as Python's numbers are passed without it."""

    _type_ = "L"


class _ULongs(_ctypes.Array):  # type: ignore[type-arg]
    """Two of them: struct rlimit, of which C can fill in the fields."""

    _type_ = _ULong
    _length_ = 2


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Int


class _Library:
    """The C library, a function an attribute, as ctypes.CDLL."""

    _handle = _ctypes.dlopen(None, 0)  # type: ignore[arg-type] # the program itself

    def __getattr__(self, name: str) -> _Function:
        function = _Function(_ctypes.dlsym(self._handle, name))
        setattr(self, name, function)
        return function


_libc = _Library()


def _check(result: int, what: str) -> int:
    if result < 0:
        number = _ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces named by CLONE_NEW* *flags* (unshare(2)); OSError on failure."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, flags: int = 0) -> None:
    """Enter the namespace that *fd* refers to (setns(2)); OSError on failure."""
    _check(_libc.setns(fd, flags), "setns")


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2); OSError names the target."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            fstype.encode() or None,
            _ULong(flags),
            os.fsencode(data) or None,
        ),
        target,
    )


def follow_host_mounts() -> None:
    """Let mounts of the namespace that this one was copied from arrive here, and none go back.

    In a chroot whose / is no mount point mount(2) cannot name the mount that it is part of;
    entering the namespace leaves the chroot for as long as it takes (setns(2)).
    """
    try:
        mount("", "/", flags=MS_REC | MS_SLAVE)
        return
    except OSError as error:
        if error.errno != EINVAL:
            raise
    here, root = (os.open(path, os.O_PATH | os.O_CLOEXEC) for path in (".", "/"))
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(own, CLONE_NEWNS)
        mount("", "/", flags=MS_REC | MS_SLAVE)
        os.fchdir(root)
        os.chroot(".")
        os.fchdir(here)
    finally:
        for fd in (here, root, own):
            os.close(fd)


def umount(target: str, flags: int = 0) -> None:
    """umount2(2); OSError names the target."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def _longs(*values: int) -> bytes:
    """A struct of 64-bit fields, to be read."""
    return b"".join(value.to_bytes(8, "little") for value in values)


def open_in_root(root: int, path: str) -> int:
    """An O_PATH descriptor of *path*, with the folder *root* as `/` for it and for its symlinks.

    openat2(2), RESOLVE_IN_ROOT; OSError names the path.
    """
    how = _longs(os.O_PATH | os.O_CLOEXEC, 0, RESOLVE_IN_ROOT)  # struct open_how
    return _check(_libc.syscall(_OPENAT2, root, os.fsencode(path), how, _ULong(len(how))), path)


def fanotify_opens(path: str) -> int:
    """A fanotify(7) queue that permits, or not, each open below the mount at *path*.

    Non-blocking; OSError where the kernel was built without it.
    """
    content_class, nonblock, cloexec = 0x4, 0x2, 0x1
    events = os.O_RDONLY | os.O_CLOEXEC
    queue = _check(_libc.fanotify_init(content_class | nonblock | cloexec, events), "fanotify")
    add_mount, open_perm, on_dir, at_fdcwd = 0x1 | 0x10, 0x10000, 0x40000000, -100
    mask = _ULong(open_perm | on_dir)
    _check(_libc.fanotify_mark(queue, add_mount, mask, at_fdcwd, os.fsencode(path)), path)
    return queue


def open_tree(path: str, *, recursive: bool) -> int:
    """A detached copy of the mount at *path* (open_tree(2)); OSError on failure."""
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    path_bytes = os.fsencode(path)
    return _check(_libc.syscall(_OPEN_TREE, AT_FDCWD, path_bytes, _ULong(flags)), path)


def new_tmpfs(source: str, options: dict[str, str], attributes: int) -> int:
    """A detached mount of a new tmpfs (fsopen, fsconfig, fsmount); *attributes*: MOUNT_ATTR_*.

    OSError on failure.
    """
    set_string, create, cloexec = 1, 6, 1
    context = _check(_libc.syscall(_FSOPEN, b"tmpfs", cloexec), "fsopen")
    try:
        for key, value in {"source": source, **options}.items():
            setting = (context, set_string, key.encode(), value.encode(), 0)
            _check(_libc.syscall(_FSCONFIG, *setting), f"fsconfig {key}")
        _check(_libc.syscall(_FSCONFIG, context, create, None, None, 0), "fsconfig")
        return _check(_libc.syscall(_FSMOUNT, context, cloexec, attributes), "fsmount")
    finally:
        os.close(context)


def set_apart(tree: int, attributes: int) -> None:
    """Set MOUNT_ATTR_* of the mounts at *tree*; no mount made elsewhere arrives there any more.

    OSError on failure.
    """
    _set_mount(tree, attributes, propagation=MS_PRIVATE, recursive=True)


def map_ids(tree: int, user_namespace: int, *, recursive: bool) -> None:
    """Map the owners of a detached mount (MOUNT_ATTR_IDMAP); OSError on failure."""
    _set_mount(tree, MOUNT_ATTR_IDMAP, user_namespace=user_namespace, recursive=recursive)


def _set_mount(
    tree: int, attributes: int, *, propagation: int = 0, user_namespace: int = 0, recursive: bool
) -> None:
    # mount_setattr(2); struct mount_attr: attr_set, attr_clr, propagation, userns_fd
    wanted = _longs(attributes, 0, propagation, user_namespace)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    size = _ULong(len(wanted))
    _check(_libc.syscall(_MOUNT_SETATTR, tree, b"", flags, wanted, size), "mount_setattr")


def move_mount(tree: int, target: str, folder: int = AT_FDCWD) -> None:
    """Attach a detached mount at *target*, or at *folder* itself where that is empty.

    move_mount(2), links not followed at the end; OSError names *target*.
    """
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    arguments = (tree, b"", folder, os.fsencode(target), flags)
    _check(_libc.syscall(_MOVE_MOUNT, *arguments), target)


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2); OSError on failure."""
    _check(_libc.pivot_root(os.fsencode(new), os.fsencode(old)), "pivot_root")


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument; OSError on failure."""
    _check(_libc.prctl(option, _ULong(value), 0, 0, 0), f"prctl {option}")


def prctl_name(name: str) -> None:
    """Name this thread (PR_SET_NAME; 15 bytes are kept)."""
    _check(_libc.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0), "prctl name")


def personality(persona: int) -> None:
    """Set the execution domain (personality(2)), which is kept by an exec; OSError on failure."""
    _check(_libc.personality(_ULong(persona)), "personality")


_IOPRIO_SET, _IOPRIO_WHO_PROCESS = 251, 1


def set_io_priority(priority: int) -> None:
    """ioprio_set(2), of this process; OSError on failure."""
    _check(_libc.syscall(_IOPRIO_SET, _IOPRIO_WHO_PROCESS, 0, priority), "ioprio_set")


_RT_SIGACTION, _SIGSET_SIZE = 13, 8
# Those that cannot be caught, and those that Python ignores: what is sent to nobody, or is larger
# than allowed, is an error of write(2) then, not the end.
_KEPT_SIGNALS = (9, 19, 13, 25)


def default_signals() -> None:
    """What each signal does, as a new program finds it, whatever the caller ignores.

    The C library keeps two signals to itself, so the kernel is asked; OSError on failure.
    """
    as_default = bytes(32)  # struct kernel_sigaction: SIG_DFL, no flags, no mask
    for number in range(1, 65):
        if number not in _KEPT_SIGNALS:
            arguments = (number, as_default, None, _SIGSET_SIZE)
            _check(_libc.syscall(_RT_SIGACTION, *arguments), f"signal {number}")


def get_limit(resource: int) -> tuple[int, int]:
    """Soft and hard limit of *resource* (getrlimit(2); the resource module is one more to import).

    Numbers of resources are in base.limits; no limit is 2^64 - 1.
    """
    limits = _ULongs()
    _check(_libc.getrlimit(resource, limits), "getrlimit")
    return int(limits[0]), int(limits[1])


def set_limit(resource: int, soft: int, hard: int) -> None:
    """setrlimit(2); OSError on failure."""
    _check(_libc.setrlimit(resource, _longs(soft, hard)), "setrlimit")


_SECCOMP, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_NEW_LISTENER = 317, 1, 8
_PIDFD_GETFD = 438


def seccomp_listener(program: bytes) -> int:
    """Come under the filter *program*; a descriptor of what it asks (seccomp_unotify(2)).

    It is closed by an exec. OSError on failure.
    """
    return seccomp(program, _SECCOMP_FILTER_FLAG_NEW_LISTENER)


def seccomp(program: bytes, flags: int = 0) -> int:
    """Come under the filter *program* for good (seccomp(2)); OSError on failure."""

    class Length(_ctypes._SimpleCData):  # type: ignore[type-arg]
        _type_ = "H"

    class Filter(_ctypes._SimpleCData):  # type: ignore[type-arg]
        _type_ = "z"

    class Program(_ctypes.Structure):  # struct sock_fprog
        _fields_ = (("length", Length), ("filter", Filter))

    loaded = Program(len(program) // 8, program)
    arguments = (_SECCOMP_SET_MODE_FILTER, flags, _ctypes.byref(loaded))
    return _check(_libc.syscall(_SECCOMP, *arguments), "seccomp")


def pidfd_getfd(pidfd: int, number: int) -> int:
    """A copy of descriptor *number* of another process (pidfd_getfd(2)); OSError on failure."""
    return _check(_libc.syscall(_PIDFD_GETFD, pidfd, number, 0), "pidfd_getfd")


def connect(fd: int, address: bytes) -> int:
    """connect(2) to a struct sockaddr; 0, or what errno says."""
    return 0 if _libc.connect(fd, address, len(address)) == 0 else _ctypes.get_errno()
