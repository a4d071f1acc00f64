"""The system calls of a QEMU in its jail: a list of what it does, and no other.

QEMU's own `-sandbox` lists what is denied, and leaves some 320 calls. This one is what QEMU was
seen to do, booted, restored and thawed, and what its C library takes in place of those on another
host. What is not on it is answered as by a kernel that does not have it: where QEMU asks for
something newer (io_uring, say) it does without. Numbers: arch/x86/entry/syscalls/syscall_64.tbl.
"""

from __future__ import annotations

from cloche.base import syscalls
from cloche.vmm.bpf import (
    ALLOW,
    ANY_BIT,
    ARGUMENTS,
    EQUAL,
    LOAD,
    NO_SUCH_CALL,
    NOT_PERMITTED,
    RETURN,
    Code,
)

# fmt: off
CALLS = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7,
    "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13,
    "rt_sigprocmask": 14, "rt_sigreturn": 15, "ioctl": 16, "pread64": 17, "pwrite64": 18,
    "readv": 19, "writev": 20, "access": 21, "pipe": 22, "select": 23, "sched_yield": 24,
    "mremap": 25, "msync": 26, "mincore": 27, "madvise": 28, "dup": 32, "dup2": 33,
    "nanosleep": 35, "getitimer": 36, "getpid": 39, "sendto": 44, "recvfrom": 45, "sendmsg": 46,
    "recvmsg": 47, "getsockname": 51, "getpeername": 52, "setsockopt": 54, "getsockopt": 55,
    "execve": 59, "exit": 60, "uname": 63, "fcntl": 72, "fsync": 74, "fdatasync": 75,
    "ftruncate": 77, "getcwd": 79, "readlink": 89, "gettimeofday": 96, "getrlimit": 97,
    "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107,
    "getegid": 108, "sigaltstack": 131, "personality": 135, "statfs": 137, "fstatfs": 138,
    "prctl": 157, "arch_prctl": 158, "gettid": 186, "futex": 202, "sched_getaffinity": 204,
    "getdents64": 217, "set_tid_address": 218, "restart_syscall": 219, "fadvise64": 221,
    "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231,
    "epoll_wait": 232, "epoll_ctl": 233, "tgkill": 234, "mbind": 237, "set_mempolicy": 238,
    "get_mempolicy": 239, "openat": 257, "newfstatat": 262, "readlinkat": 267, "faccessat": 269,
    "pselect6": 270, "ppoll": 271, "set_robust_list": 273, "get_robust_list": 274,
    "epoll_pwait": 281, "timerfd_create": 283, "fallocate": 285, "timerfd_settime": 286,
    "timerfd_gettime": 287, "signalfd4": 289, "eventfd2": 290, "epoll_create1": 291,
    "dup3": 292, "pipe2": 293, "preadv": 295, "pwritev": 296, "recvmmsg": 299, "prlimit64": 302,
    "sendmmsg": 307, "getcpu": 309, "seccomp": 317, "getrandom": 318, "memfd_create": 319,
    "membarrier": 324, "preadv2": 327, "pwritev2": 328, "statx": 332, "rseq": 334,
    "close_range": 436, "faccessat2": 439, "epoll_pwait2": 441, "futex_waitv": 449,
}
# What a user-mode network makes connections with.
NETWORK_CALLS = {
    "socket": 41, "connect": 42, "accept": 43, "shutdown": 48, "bind": 49, "listen": 50,
    "socketpair": 53, "accept4": 288,
}
# fmt: on
_CLONE, _CLONE_THREAD = 56, 0x10000


def call_filter(*, network: bool) -> bytes:
    """The filter; *network*: its QEMU has a user-mode network.

    A new process is none of it: clone(2) makes threads only, and clone3(2), whose flags no filter
    can see, is not there, so that the C library takes the other one.
    """
    code = Code()
    for number in (*CALLS.values(), *(NETWORK_CALLS.values() if network else ())):
        code.answer(number, ALLOW)
    code.add(EQUAL, _CLONE, yes=0, no=4)
    code.add(LOAD, ARGUMENTS)
    code.add(ANY_BIT, _CLONE_THREAD, yes=1, no=0)
    code.add(RETURN, NOT_PERMITTED)
    code.add(RETURN, ALLOW)
    return code.finish(NO_SUCH_CALL)


def come_under(*, network: bool) -> None:
    """Put this process, which can gain no privileges, under the filter for good; OSError if not."""
    syscalls.seccomp(call_filter(network=network))
