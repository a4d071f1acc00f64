"""The one function that starts QEMU, and what it is shut off from before it runs."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # signal proper imports enum, 5 ms
import fcntl
import os
import select

from cloche.base import syscalls
from cloche.base.descriptors import close_others
from cloche.base.errors import ClocheError
from cloche.base.files import read_text
from cloche.base.limits import MOST_FILES, NOFILE, STACK, STACK_SIZE
from cloche.vmm.preload import qemu_environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cloche.vmm.jail import Jail

FIRST_FD = 3
# Exit status of a child that could not become QEMU (as a shell's); its log says why.
NOT_STARTED = 127
# As that, but what shuts it off cannot be had here: so it would be for any other QEMU. Neither QEMU
# nor cloche-thaw (126) exits like that.
NOT_SHUT_OFF = 125
F_SETPIPE_SZ = 1031


def file_limit() -> int:
    """How many descriptors QEMU may have: not the caller's own limit, which differs by caller.

    Its 9p server asks once, when it starts, how many files it may keep open.
    """
    return min(MOST_FILES, syscalls.get_limit(NOFILE)[1])


def launch_qemu(
    argv: list[str],
    fds: Sequence[int],
    log: int,
    *,
    huge_pages: bool,
    program: str = "",
    restrict: Callable[[], None] | None = None,
    jail: Jail | None = None,
) -> int:
    """Start QEMU and return its pid (as seen from here).

    A *program* other than QEMU's own is one that becomes QEMU: it finds its memory laid out as in
    each start before.

    *fds* become descriptors 3, 4, … of QEMU, in this order; it has no others but /dev/null as
    input and the descriptor *log* as output. It runs as pid 1 of its own pid namespace, in its own
    mount, ipc and uts namespaces, can gain no privileges, and dies with its parent. Without
    *huge_pages* it gets none whatever it asks for. *restrict* is called in the new process when it
    can gain no privileges any more; should that fail, QEMU is not started. In a *jail* it has no
    privileges at all, and no files but those that are there.
    """
    if not os.access(argv[0], os.X_OK):
        raise ClocheError(
            f"QEMU: {argv[0]} is missing or not executable",
            hint="install qemu-system-x86, or set qemu in /etc/cloche/config.toml",
        )
    own_pid_ns = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    parent = os.getpid()
    parent_fd = os.pidfd_open(parent)

    def shut() -> None:
        if not huge_pages:
            syscalls.prctl(syscalls.PR_SET_THP_DISABLE, 1)
        if restrict is not None:
            restrict()

    try:
        syscalls.unshare(syscalls.CLONE_NEWPID)
        pid = os.fork()
        if pid == 0:
            _become_qemu(argv, fds, log, parent_fd, program, shut, jail)
        # Children to come belong to our own pid namespace again.
        syscalls.setns(own_pid_ns, syscalls.CLONE_NEWPID)
    finally:
        for fd in (own_pid_ns, parent_fd):
            os.close(fd)
    if os.getpid() != parent:
        raise AssertionError("the child of launch_qemu returned")
    return pid


def _become_qemu(
    argv: list[str],
    fds: Sequence[int],
    log_fd: int,
    parent_fd: int,
    program: str,
    shut: Callable[[], None],
    jail: Jail | None,
) -> None:
    """In the child: shut everything that is cheap to shut, then exec; never returns."""
    step = "processes and namespaces of its own"
    status = NOT_STARTED
    try:
        os.dup2(log_fd, 2)  # log_fd itself does not last until the exec
        _die_with_parent(parent_fd)
        os.setsid()
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        syscalls.default_signals()
        syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS)
        # Slave: bind mounts made below the share later still arrive here, none goes back.
        syscalls.follow_host_mounts()
        step = "privileges and descriptors"
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        status = NOT_SHUT_OFF
        shut()
        parent_fd = _arrange_descriptors(fds, log_fd, parent_fd)
        if jail is not None:
            step = "a user and a root of its own"
            jail.enter()
            _die_with_parent(parent_fd)  # another user's process forgets that (prctl(2))
        status = NOT_STARTED
        _set_limits()
        os.chdir("/")
        if jail is not None:
            status = NOT_SHUT_OFF
            step = "system calls"
            jail.lock()
            status = NOT_STARTED
        step = "exec"
        if program:
            syscalls.personality(syscalls.ADDR_NO_RANDOMIZE)
            os.execve(program, argv, {})
        os.execve(argv[0], argv, qemu_environment())
    except BaseException as error:
        os.write(2, f"cannot start QEMU: {step}: {error}\n".encode())
    finally:
        os._exit(status)


def _die_with_parent(parent_fd: int) -> None:
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
    # Who has ended before that tells nobody; its number cannot be seen from here.
    if select.select([parent_fd], [], [], 0)[0]:
        os._exit(NOT_STARTED)


def _set_limits() -> None:
    """What decides about its memory and files is the same for all callers, as far as it can be."""
    most = file_limit()
    syscalls.set_limit(NOFILE, most, most)
    # All that is mapped lies below it (mmap(2), and setrlimit(2) for RLIMIT_STACK).
    _, hard = syscalls.get_limit(STACK)
    syscalls.set_limit(STACK, min(STACK_SIZE, hard), hard)


def _arrange_descriptors(fds: Sequence[int], log_fd: int, parent_fd: int) -> int:
    """Give *fds* their numbers, close all others; returns where *parent_fd* is until the exec."""
    # Move everything out of the way first: a target number may be one of the sources.
    high = max(64, *fds, log_fd, parent_fd) + 1
    moved = []
    for number, fd in enumerate([*fds, log_fd, parent_fd]):
        os.dup2(fd, high + number, inheritable=False)
        moved.append(high + number)
    *given, log_fd, parent_fd = moved
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    for number, fd in enumerate(given):
        os.dup2(fd, FIRST_FD + number)
    # What was inherited from the engine is none of QEMU's business.
    close_others([*range(FIRST_FD, FIRST_FD + len(fds)), parent_fd])
    return parent_fd


def pipe_with(data: bytes) -> int:
    """A pipe's read end that holds all of *data*; QEMU reads it as its incoming migration.

    `exec:cat FILE` would need QEMU to spawn, which its sandbox forbids, and a regular file does
    not work as `fd:` (QEMU 7.2).
    """
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, F_SETPIPE_SZ, max(65536, len(data)))
    os.write(write_end, data)
    os.close(write_end)
    return read_end


def host_never_overcommits() -> bool:
    """Whether this host refuses memory that it may not have; QEMU then takes no reserve=off."""
    return (read_text("/proc/sys/vm/overcommit_memory") or "").strip() == "2"
