"""No system call of the agent's own depends on what a container's seccomp profile allows.

Save on execve, by which the container's program begins; runc, too, needs that. The programs here
make no system call at all, or one that is named: so all others can be denied at once, and what
starts then starts with each of them denied alone.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

import pyseccomp  # type: ignore[import-untyped]
import pytest

from cloche.model.seccomp_profile import ARCHITECTURES

from .bundles import Bundle
from .programs import DIED, DIES, SUCCEEDS, WAITS, write_program
from .runtime import Runtime
from .test_process import fields, same_under_runc, seccomp

_X86_64 = ARCHITECTURES["SCMP_ARCH_X86_64"]


def _calls() -> list[str]:
    """All system calls of x86-64 that libseccomp knows."""
    found = []
    for number in range(600):
        try:
            found.append(pyseccomp.resolve_syscall(_X86_64, number).decode())
        except ValueError:
            continue
    return found


CALLS = _calls()
ERRNOS = [errno.EPERM, errno.ENOSYS]


def test_the_system_calls_are_all_there() -> None:
    assert len(CALLS) >= 362
    assert {"execve", "faccessat2", "setresuid", "setresgid", "write", "exit_group"} < {*CALLS}


def deny(bundle: Bundle, names: Sequence[str], number: int = errno.EPERM) -> None:
    """Have *names* fail with *number*."""
    seccomp(bundle, {"names": [*names], "action": "SCMP_ACT_ERRNO", "errnoRet": number})


def allow(bundle: Bundle, *names: str, default: str = "SCMP_ACT_ERRNO") -> None:
    """Allow nothing but *names*."""
    seccomp(bundle, {"names": [*names], "action": "SCMP_ACT_ALLOW"}, default=default)


def needed(runs: Callable[[Sequence[str]], bool], names: Sequence[str]) -> set[str]:
    """Those of *names* which, denied alone, keep a container from running."""
    if runs(names):
        return set()
    if len(names) == 1:
        return {*names}
    half = len(names) // 2
    return needed(runs, names[:half]) | needed(runs, names[half:])


@pytest.mark.parametrize("no_new_privileges", [True, False])
@pytest.mark.parametrize("number", ERRNOS)
def test_each_call_denied(
    cloche: Runtime, runc: Runtime, bundle: Bundle, number: int, no_new_privileges: bool
) -> None:
    write_program(bundle.rootfs / "dies", DIES)
    bundle.args("/dies").process["noNewPrivileges"] = no_new_privileges

    def runs(runtime: Runtime, names: Sequence[str]) -> bool:
        deny(bundle, names, number)
        return runtime.run(bundle, code=None).code == DIED

    others = [name for name in CALLS if name != "execve"]
    assert needed(lambda names: runs(cloche, names), others) == set()
    assert not runs(cloche, ["execve"])
    # As there; what else runc needs differs, and is no matter of the profile's author.
    assert not runs(runc, ["execve"])
    for name in ("faccessat2", "setresuid", "setresgid"):
        assert runs(runc, [name])


def _user(bundle: Bundle) -> None:
    bundle.process["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [5]}


def _terminal(bundle: Bundle) -> None:
    bundle.process["terminal"] = True


def _limits(bundle: Bundle) -> None:
    bundle.config["process"] |= {"cwd": "/made/for/it", "oomScoreAdj": 100}
    bundle.process["rlimits"] = [{"type": "RLIMIT_CORE", "soft": 2**63, "hard": 2**63}]


@pytest.mark.parametrize("no_new_privileges", [True, False])
@pytest.mark.parametrize("default", ["SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS"])
@pytest.mark.parametrize("change", [_user, _limits])
def test_only_execve_allowed(
    cloche: Runtime,
    bundle: Bundle,
    change: Callable[[Bundle], None],
    default: str,
    no_new_privileges: bool,
) -> None:
    write_program(bundle.rootfs / "dies", DIES)
    change(bundle)
    allow(bundle.args("/dies"), "execve", default=default)
    bundle.process["noNewPrivileges"] = no_new_privileges
    cloche.run(bundle, code=DIED)


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_only_execve_allowed_of_an_exec(
    cloche: Runtime, bundle: Bundle, no_new_privileges: bool
) -> None:
    write_program(bundle.rootfs / "waits", WAITS)
    write_program(bundle.rootfs / "dies", DIES)
    bundle.process["noNewPrivileges"] = no_new_privileges
    allow(bundle.args("/waits"), "execve", "pause")
    container = cloche.start(bundle)
    flags = ["--no-new-privs"] if no_new_privileges else []
    for user in ("0:0", "1000:1000"):
        cloche("exec", *flags, "--user", user, container.id, "/dies", code=DIED)
    with cloche.terminal("exec", "-t", *flags, container.id, "/dies") as terminal:
        assert terminal.wait() == DIED


def test_only_execve_allowed_in_a_user_namespace(cloche: Runtime, bundle: Bundle) -> None:
    write_program(bundle.rootfs / "dies", DIES)
    ids = [{"containerID": 0, "hostID": 0, "size": 65536}]
    bundle.linux["namespaces"].append({"type": "user"})
    bundle.linux["uidMappings"] = bundle.linux["gidMappings"] = ids
    bundle.process["noNewPrivileges"] = False
    allow(bundle.args("/dies"), "execve")
    cloche.run(bundle, code=DIED)


@pytest.mark.parametrize("no_new_privileges", [True, False])
@pytest.mark.parametrize(
    ("code", "cause"),
    [("text", "exec format error"), ("#!/not/there\n", "no such file or directory")],
)
def test_why_a_program_cannot_be_executed_is_told_whatever_is_denied(
    cloche: Runtime, bundle: Bundle, code: str, cause: str, no_new_privileges: bool
) -> None:
    write_program(bundle.rootfs / "waits", WAITS)
    (bundle.rootfs / "program").write_text(code)
    (bundle.rootfs / "program").chmod(0o755)
    bundle.process["noNewPrivileges"] = no_new_privileges
    bundle.process["rlimits"] = [{"type": "RLIMIT_CORE", "soft": 2**63, "hard": 2**63}]
    allow(bundle.args("/program"), "execve", "pause")
    said = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert said == f"cloche: run failed: exec /program: {cause}"
    assert not (bundle.rootfs / "core").exists()
    container = cloche.start(bundle.args("/waits"))
    for _ in range(2):  # what has been used is used again
        assert cause in cloche.fails("exec", container.id, "/program", code=255)


def test_the_filter_costs_the_program_no_capability_and_gives_it_none(
    cloche: Runtime, runc: Runtime, bundle: Bundle
) -> None:
    """It is installed with CAP_SYS_ADMIN, by the process that becomes the program."""
    deny(bundle, ["mkdir"])
    bundle.process["noNewPrivileges"] = False
    bundle.sh("grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/self/status")
    for user in ({"uid": 0, "gid": 0}, {"uid": 1000, "gid": 1000}):
        bundle.process["user"] = user
        for ambient in (False, True):
            bundle.capabilities("CAP_KILL", "CAP_CHOWN", ambient=ambient)
            found = fields(same_under_runc(cloche, runc, bundle))
            assert (found["Seccomp"], found["NoNewPrivs"]) == ("2", "0")
            assert int(found["CapEff"], 16) == (0x21 if ambient or not user["uid"] else 0)


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_start_container_hooks_run_under_the_filter(
    cloche: Runtime, runc: Runtime, bundle: Bundle, no_new_privileges: bool
) -> None:
    deny(bundle, ["mkdir", "mkdirat"])
    bundle.process["noNewPrivileges"] = no_new_privileges
    script = "grep Seccomp /proc/self/status; mkdir /tmp/x || echo denied"
    argv = ["sh", "-c", f"{{ {script}; }} >/told 2>/dev/null"]
    hook = {"path": "/bin/sh", "args": argv, "env": ["PATH=/bin"]}
    bundle.config["hooks"] = {"startContainer": [hook]}
    result = same_under_runc(cloche, runc, bundle.sh("cat /told; grep Seccomp /proc/self/status"))
    assert result.lines == [
        "Seccomp:\t2", "Seccomp_filters:\t1", "denied", "Seccomp:\t2", "Seccomp_filters:\t1"
    ]  # fmt: skip


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_what_a_hook_needs_is_all_that_the_profile_must_allow(
    cloche: Runtime, bundle: Bundle, no_new_privileges: bool
) -> None:
    write_program(bundle.rootfs / "dies", DIES)
    write_program(bundle.rootfs / "succeeds", SUCCEEDS)
    bundle.process["noNewPrivileges"] = no_new_privileges
    bundle.config["hooks"] = {"startContainer": [{"path": "/succeeds"}, {"path": "/succeeds"}]}
    allow(bundle.args("/dies"), "execve", "exit_group")
    cloche.run(bundle, code=DIED)
    allow(bundle, "execve")
    assert "startContainer hook /succeeds" in cloche.fails(
        "run", "--bundle", bundle.save(), cloche.new_id()
    )
