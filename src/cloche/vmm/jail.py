"""What a QEMU that serves no files is shut off from: a user of its own, a root with its program.

A QEMU whose guest gets its files from cloche-files opens nothing of the container's. So it runs
as a user that nobody else is, without any capability, in a root where there is QEMU to be executed
and nothing to be written. All else is handed to it as descriptors.
"""

from __future__ import annotations

import os
import stat

from cloche.base import syscalls
from cloche.base.quick import suppress
from cloche.vmm.call_filter import come_under

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Far from all users and from the ranges of subordinate ids (/etc/subuid); what lies above 2^31 is
# too large for some programs. A supervisor's pid is added, which is at most 2^22.
FIRST_USER = 0x7000_0000
# For a user namespace that has no such numbers.
NOBODY = 65534
TREE = "/usr"
# Folders of the root that are links into /usr, or trees of their own on a host without such.
_LINKS = ("lib", "lib64", "lib32", "libx32", "bin", "sbin")
_DEVICES = ("/dev/null", "/dev/urandom")
_KVM = "/dev/kvm"
# For QEMU's user-mode network: where it is to send the guest's questions for names.
_RESOLV_CONF = "/etc/resolv.conf"
# What it takes to be executed: where its libraries are, and (QEMU asks that before it takes
# memory that is not reserved) whether the host gives out more memory than it has.
_EXECUTED = ("/etc/ld.so.cache", "/proc/sys/vm/overcommit_memory")
_NOSUID, _NODEV, _NOEXEC, _RDONLY = 2, 4, 8, 1  # MOUNT_ATTR_* (linux/mount.h)
_EINVAL = 22


class Jail:
    """Where one QEMU is kept; *files* are those it may read by name, beside what is below /usr.

    *kvm*: it uses that; *user_network*: it asks the host's name servers.
    """

    def __init__(self, files: Sequence[str], *, kvm: bool, user_network: bool) -> None:
        self.user = FIRST_USER + os.getpid()
        self.files = [path for path in files if not path.startswith(f"{TREE}/")]
        self.groups: list[int] = []
        self.network = user_network
        self.devices = [*_DEVICES]
        if kvm:
            self._allow_kvm()
        if user_network:
            self.files.append(_RESOLV_CONF)

    def _allow_kvm(self) -> None:
        self.devices.append(_KVM)
        with suppress(OSError):  # QEMU says what is wrong with it
            kvm = os.stat(_KVM)
            if kvm.st_mode & 0o006 != 0o006:
                self.groups.append(kvm.st_gid)

    def enter(self) -> None:
        """Shut this process in, which has a mount namespace of its own; OSError on failure."""
        self._make_root()
        self._become_user()

    def lock(self) -> None:
        """Allow what QEMU does, its execution included, and nothing else; OSError on failure."""
        come_under(network=self.network)

    def _make_root(self) -> None:
        trees = [(path, _tree(path, _NOSUID | _NODEV | _RDONLY)) for path in self._trees()]
        trees += [(path, _tree(path, _NOSUID | _NODEV | _RDONLY)) for path in self._names()]
        trees += [(path, _tree(path, _NOSUID | _RDONLY)) for path in self._nodes()]
        links = [(name, os.readlink(f"/{name}")) for name in _LINKS if os.path.islink(f"/{name}")]
        options = {"mode": "0755", "size": "64k", "nr_inodes": "256"}
        root = syscalls.new_tmpfs("cloche-qemu", options, _NOSUID | _NODEV | _NOEXEC)
        syscalls.move_mount(root, "/")
        for name, target in links:
            os.symlink(target, name, dir_fd=root)
        for path, tree in trees:
            _make_point(root, path.lstrip("/"), is_dir=stat.S_ISDIR(os.fstat(tree).st_mode))
            syscalls.move_mount(tree, path.lstrip("/"), root)
            os.close(tree)
        syscalls.set_apart(root, _RDONLY)
        os.fchdir(root)
        os.close(root)
        _become_root()

    def _trees(self) -> list[str]:
        own = [f"/{name}" for name in _LINKS if not os.path.islink(f"/{name}")]
        return [TREE, *(path for path in own if os.path.isdir(path))]

    def _names(self) -> list[str]:
        return [path for path in (*self.files, *_EXECUTED) if os.path.exists(path)]

    def _nodes(self) -> list[str]:
        return [path for path in self.devices if os.path.exists(path)]

    def _become_user(self) -> None:
        """For good: without any capability, and with no other's group."""
        os.setgroups(self.groups)
        try:
            os.setresgid(self.user, self.user, self.user)
        except OSError as error:
            if error.errno != _EINVAL:
                raise
            self.user = NOBODY
            os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(self.user, self.user, self.user)


def _tree(path: str, attributes: int) -> int:
    tree = syscalls.open_tree(path, recursive=True)
    syscalls.set_apart(tree, attributes)
    return tree


def _make_point(root: int, path: str, *, is_dir: bool) -> None:
    """What something is mounted on: a folder or a file, and the folders above it."""
    *above, _ = path.split("/")
    for depth in range(1, len(above) + 1):
        with suppress(FileExistsError):
            os.mkdir("/".join(above[:depth]), dir_fd=root)
    if is_dir:
        os.mkdir(path, dir_fd=root)
    else:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o444, dir_fd=root))


def _become_root() -> None:
    """Make the working directory, a mount, the root; nothing of the old one is left."""
    try:
        syscalls.pivot_root(".", ".")
    except OSError as error:
        if error.errno != _EINVAL:
            raise
        # The old root is no mount point (a chroot's), so it cannot be taken away. Without
        # capabilities, and without a descriptor of a folder, there is no way back to it either.
        os.chroot(".")
        os.chdir("/")
        return
    syscalls.umount(".", syscalls.MNT_DETACH)
    os.chdir("/")
