"""The ``process`` section of config.json, as the guest's kernel reports it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloche.model.capabilities import CAPABILITIES, mask

from .bundles import Bundle
from .runtime import Result, Runtime
from .starts import each_start

ADMIN = "CAP_SYS_ADMIN"


def fields(result: Result) -> dict[str, str]:
    """The lines `name: value` of what was printed."""
    pairs = (line.partition(":") for line in result.lines)
    return {name: value.strip() for name, _, value in pairs}


def same_under_runc(cloche: Runtime, runc: Runtime, bundle: Bundle) -> Result:
    """What the bundle prints under cloche, and just so under runc."""
    ours, theirs = cloche.run(bundle, code=None), runc.run(bundle, code=None)
    assert (ours.code, ours.output) == (theirs.code, theirs.output)
    return ours


def test_arguments_and_environment(cloche: Runtime, runc: Runtime, bundle: Bundle) -> None:
    script = 'for each in "$@"; do echo "<$each>"; done; env | sort | grep -v ^PWD'
    bundle.args("sh", "-c", script, "sh", "a b", "", "ü$HOME", "'\"\\")
    bundle.process["env"] = ["A=1", "PATH=/bin:/usr/bin", "B=", "C=x=y", "D=zwei Wörter"]
    result = same_under_runc(cloche, runc, bundle)
    assert result.lines[:4] == ["<a b>", "<>", "<ü$HOME>", "<'\"\\>"]
    assert "HOME=/root" in result.lines


def test_home_is_the_users(cloche: Runtime, runc: Runtime, bundle: Bundle) -> None:
    bundle.process["user"] = {"uid": 1, "gid": 1}
    same = same_under_runc(cloche, runc, bundle.sh("echo $HOME"))
    assert same.output == "/usr/sbin"


def test_working_directory_is_made(cloche: Runtime, runc: Runtime, bundle: Bundle) -> None:
    bundle.process["cwd"] = "/new/folder"
    assert same_under_runc(cloche, runc, bundle.sh("pwd")).output == "/new/folder"


def test_user_groups_and_umask(cloche: Runtime, runc: Runtime, bundle: Bundle) -> None:
    user = {"uid": 1000, "gid": 1001, "umask": 0o27, "additionalGids": [5, 2000]}
    bundle.process["user"] = user
    status = "grep -E '^(Uid|Gid|Groups|Umask)' /proc/self/status"
    found = fields(same_under_runc(cloche, runc, bundle.sh(status)))
    assert found["Uid"].split() == ["1000"] * 4
    assert found["Groups"].split() == ["5", "2000"]
    assert found["Umask"] == "0027"


def test_umask_is_022_when_none_is_given(cloche: Runtime, runc: Runtime, bundle: Bundle) -> None:
    assert same_under_runc(cloche, runc, bundle.sh("umask")).output == "0022"


@pytest.mark.parametrize("uid", [0, 1000])
def test_capabilities(cloche: Runtime, runc: Runtime, bundle: Bundle, uid: int) -> None:
    bundle.process["user"] = {"uid": uid, "gid": uid}
    bundle.process["noNewPrivileges"] = False
    bundle.capabilities("CAP_KILL", "CAP_CHOWN").sh("grep ^Cap /proc/self/status")
    found = fields(same_under_runc(cloche, runc, bundle))
    wanted = mask(["CAP_KILL", "CAP_CHOWN"])[0]
    assert int(found["CapBnd"], 16) == wanted
    assert int(found["CapEff"], 16) == (wanted if uid == 0 else 0)


def test_ambient_capabilities_outlive_the_change_of_user(cloche: Runtime, bundle: Bundle) -> None:
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    bundle.capabilities("CAP_NET_BIND_SERVICE", ambient=True).sh("grep ^Cap /proc/self/status")
    found = fields(cloche.run(bundle))
    assert {int(value, 16) for value in found.values()} == {1 << 10}


@each_start
def test_all_capabilities_are_those_of_the_guests_kernel(cloche: Runtime, bundle: Bundle) -> None:
    bundle.capabilities(*CAPABILITIES).sh("grep ^CapEff /proc/self/status")
    assert int(fields(cloche.run(bundle))["CapEff"], 16) == (1 << len(CAPABILITIES)) - 1


def test_no_capabilities_at_all(cloche: Runtime, runc: Runtime, bundle: Bundle) -> None:
    bundle.capabilities().sh("grep ^Cap /proc/self/status; chown 1 /etc/passwd || echo refused")
    assert same_under_runc(cloche, runc, bundle).lines[-1] == "refused"


@pytest.mark.parametrize("value", [False, True])
def test_no_new_privileges(cloche: Runtime, runc: Runtime, bundle: Bundle, value: bool) -> None:
    bundle.process["noNewPrivileges"] = value
    found = fields(same_under_runc(cloche, runc, bundle.sh("grep NoNewPrivs /proc/self/status")))
    assert found["NoNewPrivs"] == str(int(value))


def test_resource_limits(cloche: Runtime, runc: Runtime, bundle: Bundle) -> None:
    bundle.process["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 4096},
        {"type": "RLIMIT_NPROC", "soft": 70, "hard": 80},
        {"type": "RLIMIT_STACK", "soft": 1 << 20, "hard": 1 << 21},
    ]
    limits = "grep -E 'open files|core file|processes|stack' /proc/self/limits"
    found = same_under_runc(cloche, runc, bundle.sh(limits))
    assert "Max open files            100                  200" in found.output


@pytest.mark.parametrize("value", [-500, 0, 300])
def test_oom_score(cloche: Runtime, runc: Runtime, bundle: Bundle, value: int) -> None:
    bundle.process["oomScoreAdj"] = value
    bundle.sh("cat /proc/self/oom_score_adj")
    # runc itself may be kept from lowering it on this host.
    assert cloche.run(bundle).output == str(value)
    if value >= 0:
        same_under_runc(cloche, runc, bundle)


def seccomp(bundle: Bundle, *rules: dict[str, Any], default: str = "SCMP_ACT_ALLOW") -> None:
    """Give *bundle* a filter."""
    bundle.linux["seccomp"] = {
        "defaultAction": default,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": list(rules),
    }


def test_a_system_call_fails_with_the_errno_of_its_rule(
    cloche: Runtime, runc: Runtime, bundle: Bundle
) -> None:
    names = ["mkdir", "mkdirat"]
    seccomp(bundle, {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": 28})
    bundle.sh("mkdir /tmp/x 2>&1; grep Seccomp: /proc/self/status; echo ok")
    result = same_under_runc(cloche, runc, bundle)
    assert "No space left on device" in result.lines[0]
    assert result.lines[1:] == ["Seccomp:\t2", "ok"]


def test_a_rule_may_look_at_arguments(cloche: Runtime, runc: Runtime, bundle: Bundle) -> None:
    # kill(pid, SIGUSR1) only
    argument = {"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}
    seccomp(bundle, {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [argument]})
    bundle.sh("trap '' USR1 USR2; kill -USR1 $$ 2>/dev/null; echo $?; kill -USR2 $$; echo $?")
    assert same_under_runc(cloche, runc, bundle).lines == ["1", "0"]


def test_a_rule_may_kill(cloche: Runtime, runc: Runtime, bundle: Bundle) -> None:
    seccomp(bundle, {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"})
    bundle.sh("mkdir /tmp/x; echo $?")
    assert same_under_runc(cloche, runc, bundle).lines[-1] == "159"


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("nothing", '"nothing": executable file not found in $PATH'),
        ("/nothing", '"/nothing": stat /nothing: no such file or directory'),
        ("/etc", '"/etc": permission denied'),
        ("/etc/passwd", '"/etc/passwd": permission denied'),
    ],
)
def test_a_program_that_cannot_be_executed(
    cloche: Runtime, runc: Runtime, bundle: Bundle, path: str, cause: str
) -> None:
    bundle.args(path)
    ours, theirs = cloche.run(bundle, code=None), runc.run(bundle, code=None)
    assert ours.code == theirs.code == 1
    assert cause in ours.stderr
    # Newer ones have another word for a folder, of a newer Go.
    said = "".join(runc.messages("error")).replace("is a directory", "permission denied")
    assert cause in said
    assert cloche.leftovers() == []


def test_a_program_of_another_machine(cloche: Runtime, runc: Runtime, bundle: Bundle) -> None:
    program = bundle.rootfs / "program"
    program.write_bytes(b"\x7fELF" + bytes(60))
    program.chmod(0o755)
    ours = cloche.run(bundle.args("/program"), code=None)
    theirs = runc.run(bundle, code=None)
    assert ours.code == theirs.code == 1
    assert "exec format error" in ours.stderr
    assert cloche.leftovers() == []


def test_a_script_runs_by_its_interpreter(cloche: Runtime, bundle: Bundle) -> None:
    script = bundle.rootfs / "script"
    script.write_text('#!/bin/sh\necho "script $1"\n')
    script.chmod(0o755)
    assert cloche.run(bundle.args("/script", "runs")).output == "script runs"


def test_the_kernel_is_not_the_hosts(cloche: Runtime, bundle: Bundle) -> None:
    boot_id = "/proc/sys/kernel/random/boot_id"
    result = cloche.run(bundle.sh(f"cat {boot_id}; grep -c ^processor /proc/cpuinfo"))
    assert result.lines[0] != Path(boot_id).read_text().strip()
    assert result.lines[1] == "1"
