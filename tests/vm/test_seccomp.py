"""Seccomp profiles as the guest's kernel carries them out, and just so under runc."""

from __future__ import annotations

from typing import Any

import pytest

from .bundles import Bundle
from .runtime import Runtime
from .test_process import same_under_runc, seccomp

MKDIR = ["mkdir", "mkdirat"]
KILLED = str(128 + 31)  # by SIGSYS


@pytest.mark.parametrize("no_new_privileges", [True, False])
@pytest.mark.parametrize(
    ("action", "outcome"),
    [
        ({"action": "SCMP_ACT_LOG"}, "0"),
        ({"action": "SCMP_ACT_ERRNO"}, "Operation not permitted"),
        ({"action": "SCMP_ACT_ERRNO", "errnoRet": 28}, "No space left on device"),
        # Nobody traces it.
        ({"action": "SCMP_ACT_TRACE"}, "Function not implemented"),
        ({"action": "SCMP_ACT_TRAP"}, KILLED),
        ({"action": "SCMP_ACT_KILL"}, KILLED),
        ({"action": "SCMP_ACT_KILL_THREAD"}, KILLED),
        ({"action": "SCMP_ACT_KILL_PROCESS"}, KILLED),
    ],
)
def test_actions(
    cloche: Runtime,
    runc: Runtime,
    bundle: Bundle,
    action: dict[str, Any],
    outcome: str,
    no_new_privileges: bool,
) -> None:
    bundle.process["noNewPrivileges"] = no_new_privileges
    seccomp(bundle, {"names": MKDIR, **action})
    bundle.sh("mkdir /tmp/x 2>&1; echo $?; rmdir /tmp/x 2>/dev/null")
    assert outcome in same_under_runc(cloche, runc, bundle).output


@pytest.mark.parametrize(
    ("operator", "value", "value_two", "forbidden"),
    [
        ("SCMP_CMP_NE", 10, 0, [12, 14]),
        ("SCMP_CMP_LT", 12, 0, [10]),
        ("SCMP_CMP_LE", 12, 0, [10, 12]),
        ("SCMP_CMP_EQ", 12, 0, [12]),
        ("SCMP_CMP_GE", 12, 0, [12, 14]),
        ("SCMP_CMP_GT", 12, 0, [14]),
        ("SCMP_CMP_MASKED_EQ", 4, 4, [12, 14]),
    ],
)
def test_operators(
    cloche: Runtime,
    runc: Runtime,
    bundle: Bundle,
    operator: str,
    value: int,
    value_two: int,
    forbidden: list[int],
) -> None:
    argument = {"index": 1, "value": value, "valueTwo": value_two, "op": operator}
    seccomp(bundle, {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [argument]})
    # SIGUSR1, SIGUSR2, SIGALRM
    bundle.sh(
        "trap '' USR1 USR2 ALRM; for each in 10 12 14; do "
        "kill -$each $$ 2>/dev/null || echo $each; done"
    )
    assert same_under_runc(cloche, runc, bundle).lines == [str(number) for number in forbidden]


def test_a_list_of_what_is_allowed(cloche: Runtime, bundle: Bundle) -> None:
    names = ["read", "write", "exit_group", "exit", "execve", "brk", "arch_prctl", "mmap", "open"]
    names += ["openat", "close", "fstat", "stat", "lstat", "newfstatat", "getuid", "geteuid"]
    names += ["getpid", "getppid", "getcwd", "rt_sigaction", "rt_sigprocmask", "prctl", "futex"]
    names += ["set_tid_address", "set_robust_list", "rseq", "prlimit64", "mprotect", "uname"]
    names += ["getrandom", "readlink", "readlinkat", "munmap", "ioctl", "fcntl", "capset", "access"]
    names += ["setresuid", "setresgid", "setgroups", "chdir", "faccessat2", "faccessat", "umask"]
    names += ["getgid", "getegid", "sched_getaffinity", "sigaltstack", "tgkill", "gettid", "dup3"]
    names += ["epoll_ctl", "epoll_pwait", "nanosleep", "sched_yield", "fstatfs", "getdents64"]
    names += ["capget", "setuid", "setgid", "keyctl", "statx", "statfs", "poll", "madvise"]
    seccomp(
        bundle,
        {"names": names, "action": "SCMP_ACT_ALLOW"},
        {"names": ["not_a_system_call"], "action": "SCMP_ACT_ALLOW"},
        default="SCMP_ACT_ERRNO",
    )
    bundle.linux["seccomp"]["defaultErrnoRet"] = 30
    # runc's own process does not get by with these.
    result = cloche.run(bundle.sh("echo on; mkdir /tmp/x; echo not reached"), code=2)
    assert result.lines == ["on"]
    assert "can't fork: Read-only file system" in result.stderr


@pytest.mark.parametrize(
    "flags",
    [
        ["SECCOMP_FILTER_FLAG_LOG"],
        ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
        ["SECCOMP_FILTER_FLAG_TSYNC"],
        ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
    ],
)
def test_flags(cloche: Runtime, bundle: Bundle, flags: list[str]) -> None:
    # runc 1.1.5 refuses them all.
    seccomp(bundle, {"names": MKDIR, "action": "SCMP_ACT_ERRNO"})
    bundle.linux["seccomp"]["flags"] = flags
    script = "mkdir /tmp/x 2>/dev/null || echo refused; grep Seccomp /proc/self/status"
    assert cloche.run(bundle.sh(script)).lines == ["refused", "Seccomp:\t2", "Seccomp_filters:\t1"]


def test_an_exec_has_the_containers(cloche: Runtime, bundle: Bundle) -> None:
    seccomp(bundle, {"names": MKDIR, "action": "SCMP_ACT_ERRNO", "errnoRet": 28})
    container = cloche.start(bundle.args("sleep", "1000"))
    result = container.sh("mkdir /tmp/x || grep Seccomp: /proc/self/status")
    assert "No space left on device" in result.stderr
    assert result.output == "Seccomp:\t2"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "$.linux.seccomp.defaultAction: "),
        ({"listenerPath": "/run/listener"}, "$.linux.seccomp.listenerPath: "),
        ({"flags": ["X"]}, "$.linux.seccomp.flags[0]: "),
    ],
)
def test_what_a_vm_cannot_do_is_refused(
    cloche: Runtime, bundle: Bundle, changes: dict[str, object], problem: str
) -> None:
    seccomp(bundle)
    bundle.linux["seccomp"] |= changes
    assert problem in cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
