"""What somebody would try who has taken a QEMU over: with its user, in its namespaces and its root.

QEMU's own seccomp filter is left out: what fails here fails for want of rights alone.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from cloche.base import syscalls

# What the attempts use is loaded here: in QEMU's root there is no Python.
_LIBC = ctypes.CDLL(None, use_errno=True)
_NAMESPACES = ("pid", "mnt", "ipc", "uts", "net", "cgroup")
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_EPERM = 1
_REBOOT, _OPEN_BY_HANDLE_AT = 169, 304
_SETHOSTNAME, _SWAPON = 170, 167
_AT_FDCWD = -100


class Target:
    """What is to be reached on the host: a *secret* file, a *folder*, a template's *memory*."""

    def __init__(self, secret: Path, folder: Path, memory: Path) -> None:
        self.secret = str(secret)
        self.folder = str(folder)
        self.memory = str(memory)


def read_a_file(target: Target) -> None:
    """A file that everybody on the host may read."""
    os.close(os.open(target.secret, os.O_RDONLY))


def write_a_file(target: Target) -> None:
    """A folder that everybody on the host may write to."""
    path = f"{target.folder}/written"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    os.unlink(path)


def write_in_its_root(_: Target) -> None:
    """Leave something where QEMU itself is looked for."""
    os.close(os.open("/usr/.cloche-attacker", os.O_WRONLY | os.O_CREAT, 0o600))
    os.unlink("/usr/.cloche-attacker")


def change_the_template(target: Target) -> None:
    """What other VMs are made from."""
    os.close(os.open(target.memory, os.O_RDWR))


def list_a_folder(target: Target) -> None:
    """A folder of the host's that everybody may read."""
    os.listdir(target.folder)


def list_processes(_: Target) -> None:
    """Somebody's command line."""
    if not any(name.isdigit() for name in os.listdir("/proc")):
        raise PermissionError(_EPERM, "no process is there")


def make_a_device_node(target: Target) -> None:
    """A node of a disk."""
    os.mknod(f"{target.folder}/disk", stat.S_IFBLK | 0o600, os.makedev(254, 0))
    os.unlink(f"{target.folder}/disk")


def become_root(_: Target) -> None:
    """A user that owns something."""
    os.setresuid(0, 0, 0)


def join_a_group(_: Target) -> None:
    """Groups have rights as well."""
    os.setgroups([0])


def mount_something(_: Target) -> None:
    """Change the root."""
    syscalls.mount("none", "/usr", "tmpfs")
    syscalls.umount("/usr")


def leave_the_root(_: Target) -> None:
    """chroot(2) is the first step out of one."""
    os.chroot("/usr")


def unmount_the_root(_: Target) -> None:
    """What is below a mount is the host's."""
    point = "/dev/null" if not os.path.ismount("/dev/shm") else "/dev/shm"
    syscalls.umount(point, syscalls.MNT_DETACH)


def listen_to_the_network(_: Target) -> None:
    """All packets of the container's namespace."""
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()


def change_the_network(_: Target) -> None:
    """Interfaces, addresses, routes."""
    with socket.socket() as any_socket:
        flags = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16s24x", b"lo"))
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, flags)


def open_by_handle(_: Target) -> None:
    """A file by its number, whatever folders it is in; with rights for it ESTALE is the answer."""
    _refused(_OPEN_BY_HANDLE_AT, _AT_FDCWD, struct.pack("Ii8x", 8, 1), os.O_RDONLY)


def restart_the_host(_: Target) -> None:
    """With rights for it EINVAL is the answer: the kernel wants other numbers first."""
    _refused(_REBOOT, 0, 0, 0, 0)


def rename_the_host(_: Target) -> None:
    """Its own UTS namespace, in fact."""
    _refused(_SETHOSTNAME, b"attacked", 8)


def swap_on(_: Target) -> None:
    """With rights for it ENOENT is the answer."""
    _refused(_SWAPON, b"/none", 0)


def _refused(number: int, *arguments: object) -> None:
    if _LIBC.syscall(number, *arguments) < 0 and ctypes.get_errno() == _EPERM:
        raise PermissionError(_EPERM, "refused")


ATTEMPTS: dict[str, Callable[[Target], None]] = {
    attempt.__name__: attempt
    for attempt in (
        read_a_file,
        write_a_file,
        write_in_its_root,
        change_the_template,
        list_a_folder,
        list_processes,
        make_a_device_node,
        become_root,
        join_a_group,
        mount_something,
        leave_the_root,
        unmount_the_root,
        listen_to_the_network,
        change_the_network,
        open_by_handle,
        restart_the_host,
        rename_the_host,
        swap_on,
    )
}


def attack(qemu: int, target: Target) -> dict[str, str]:
    """What becomes of each attempt in the place of the process *qemu*: why it fails, or nothing."""
    results, end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _take_the_place_of(qemu)
            _in_a_child(lambda: os.write(end, json.dumps(_try_all(target)).encode()))
        except BaseException as error:  # the forked test must not go on
            os.write(end, json.dumps({"attacker": repr(error)}).encode())
        finally:
            os._exit(0)
    os.close(end)
    with os.fdopen(results, "rb") as file:
        found: dict[str, str] = json.loads(file.read())
    os.waitpid(child, 0)
    return found


def _take_the_place_of(qemu: int) -> None:
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{qemu}/status").read_text().splitlines()
    )
    spaces = [os.open(f"/proc/{qemu}/ns/{name}", os.O_RDONLY) for name in _NAMESPACES]
    root = os.open(f"/proc/{qemu}/root", os.O_PATH)
    for space in spaces:
        syscalls.setns(space)
        os.close(space)
    os.fchdir(root)
    os.chroot(".")
    os.close(root)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    os.setgroups([int(group) for group in status["Groups"].split()])
    os.setresgid(*(int(number) for number in status["Gid"].split()[:3]))
    os.setresuid(*(int(number) for number in status["Uid"].split()[:3]))


def _in_a_child(work: Callable[[], object]) -> None:
    """A process of the pid namespace that was joined."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    os.waitpid(child, 0)


def _try_all(target: Target) -> dict[str, str]:
    """Each attempt in a process of its own: one may change what the next one finds."""
    found = {}
    for name, attempt in ATTEMPTS.items():
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                attempt(target)
            except OSError as error:
                os.write(writer, str(error).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            found[name] = file.read().decode()
        os.waitpid(child, 0)
    return found
