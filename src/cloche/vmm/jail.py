"""What a QEMU that serves no files is shut off from: a user of its own, a root with its program.

A QEMU whose guest gets its files from cloche-files opens nothing of the container's. So it runs
as a user that nobody else is, without any capability, in a root where there is QEMU to be executed
and nothing to be written. All else is handed to it as descriptors.
"""

from __future__ import annotations

import os
import stat

from cloche.base import syscalls
from cloche.base.files import read_text
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
        self.user = _user()
        self.files = [path for path in files if not path.startswith(f"{TREE}/")]
        self.network = user_network
        self.kvm = kvm
        if user_network:
            self.files.append(_RESOLV_CONF)

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
        trees += [(path, _tree(path, _NOSUID | _RDONLY)) for path in _DEVICES]
        links = [(name, os.readlink(f"/{name}")) for name in _LINKS if os.path.islink(f"/{name}")]
        options = {"mode": "0755", "size": "64k", "nr_inodes": "256"}
        no_devices = 0 if self.kvm else _NODEV
        root = syscalls.new_tmpfs("cloche-qemu", options, _NOSUID | no_devices | _NOEXEC)
        syscalls.move_mount(root, "/")
        for name, target in links:
            os.symlink(target, name, dir_fd=root)
        for path, tree in trees:
            _make_point(root, path.lstrip("/"), is_dir=stat.S_ISDIR(os.fstat(tree).st_mode))
            syscalls.move_mount(tree, path.lstrip("/"), root)
            os.close(tree)
        if self.kvm:
            self._make_kvm(root)
        syscalls.set_apart(root, _RDONLY)
        os.fchdir(root)
        os.close(root)
        _become_root()

    def _trees(self) -> list[str]:
        own = [f"/{name}" for name in _LINKS if not os.path.islink(f"/{name}")]
        return [TREE, *(path for path in own if os.path.isdir(path))]

    def _names(self) -> list[str]:
        return [path for path in (*self.files, *_EXECUTED) if os.path.exists(path)]

    def _make_kvm(self, root: int) -> None:
        """A node of the user's own: the host's may be for root alone, or for a group."""
        with suppress(FileNotFoundError):  # QEMU says that there is none
            device = os.stat(_KVM).st_rdev
            path = _KVM.lstrip("/")
            os.mknod(path, stat.S_IFCHR | 0o600, device, dir_fd=root)
            os.chown(path, self.user, self.user, dir_fd=root)

    def _become_user(self) -> None:
        """For good: without any capability, and with no group of another's."""
        os.setgroups([])
        os.setresgid(self.user, self.user, self.user)
        os.setresuid(self.user, self.user, self.user)


def _user() -> int:
    """A number that no other supervisor's QEMU has now, as far as there are such numbers here."""
    wanted = FIRST_USER + os.getpid()
    for line in (read_text("/proc/self/uid_map") or "").splitlines():
        first, _, count = map(int, line.split())
        if first <= wanted < first + count:
            return wanted
    return NOBODY


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
