"""`exec` flag by flag: what the process is like, under runc too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.patience import PATIENCE_SECONDS

from .bundles import Bundle
from .runtime import Container, Runtime

STATUS = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:)' /proc/self/status"
SHOW = f"{STATUS}; pwd; echo $A-$HOME; cat /proc/self/oom_score_adj; test -t 0 || echo none"


@pytest.fixture
def both(cloche: Runtime, runc: Runtime, bundle: Bundle) -> list[Container]:
    """The same container under cloche and under runc, with much that an exec can inherit."""
    bundle.process["user"] = {"uid": 7, "gid": 8, "additionalGids": [9, 10], "umask": 0o27}
    bundle.process["env"] += ["A=container"]
    bundle.process["cwd"] = "/tmp"
    bundle.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 200, "hard": 300}]
    bundle.process["oomScoreAdj"] = 50
    bundle.process["noNewPrivileges"] = True
    bundle.capabilities("CAP_CHOWN", "CAP_SETUID", ambient=True)
    bundle.args("sleep", "1000")
    return [cloche.start(bundle), runc.start(bundle)]


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--user", "3"),
        ("--user", "3:4"),
        ("--user", "0", "--no-new-privs=false"),
        ("--additional-gids", "11", "--additional-gids", "12"),
        ("--cap", "CAP_KILL"),
        ("--user", "0:0", "-c", "CAP_KILL", "-c", "CAP_FOWNER"),
        ("--cwd", "/usr", "-e", "A=exec", "-e", "HOME=/nowhere"),
        ("--no-new-privs",),
        ("--cgroup", "/"),
    ],
    ids=" ".join,
)
def test_flags(both: list[Container], flags: tuple[str, ...]) -> None:
    ours, theirs = (container.sh(SHOW, *flags, code=None) for container in both)
    assert ours.code == theirs.code == 0, f"{ours}\n{theirs}"
    assert ours.lines == theirs.lines


def test_a_capability_is_ambient_where_it_is_inheritable(
    cloche: Runtime, runc: Runtime, bundle: Bundle
) -> None:
    bundle.capabilities("CAP_CHOWN", "CAP_KILL", ambient=True)
    bundle.process["capabilities"]["ambient"] = ["CAP_CHOWN"]
    bundle.args("sleep", "1000")
    flags = ("--user", "5", "--cap", "CAP_KILL", "--cap", "CAP_FOWNER")
    shown = [
        runtime.start(bundle).sh("grep ^Cap /proc/self/status", *flags).lines
        for runtime in (cloche, runc)
    ]
    assert shown[0] == shown[1]
    assert shown[0][-1].split() == ["CapAmb:", f"{0b100001:016x}"]


def test_umask_and_oom_score_are_the_containers_or_its_own(
    cloche: Runtime, bundle: Bundle, tmp_path: Path
) -> None:
    # runc 1.1 leaves out what an exec says of them.
    bundle.process["user"] = {"uid": 0, "gid": 0, "umask": 0o27}
    bundle.process["oomScoreAdj"] = 50
    container = cloche.start(bundle.args("sleep", "1000"))
    show = "umask; cat /proc/self/oom_score_adj"
    assert container.sh(show).lines == ["0027", "50"]
    file = tmp_path / "process.json"
    user = {"uid": 0, "gid": 0, "umask": 0o77}
    plan = {**PROCESS, "args": ["sh", "-c", show], "user": user, "oomScoreAdj": 77}
    file.write_text(json.dumps(plan))
    assert cloche("exec", "--process", file, container.id).lines == ["0077", "77"]


KILL = ["CAP_KILL"]
PROCESS: dict[str, object] = {"args": ["sh", "-c", SHOW], "cwd": "/", "env": ["PATH=/bin:/usr/bin"]}


@pytest.mark.parametrize(
    "process",
    [
        PROCESS,
        {**PROCESS, "user": {"uid": 0, "gid": 0, "additionalGids": [1]}},
        {**PROCESS, "capabilities": {"bounding": KILL, "effective": KILL, "permitted": KILL}},
        {**PROCESS, "noNewPrivileges": True, "cwd": "/usr", "env": ["PATH=/bin", "A=b"]},
    ],
    ids=["least", "user", "capabilities", "privileges"],
)
def test_a_process_file(both: list[Container], tmp_path: Path, process: dict[str, object]) -> None:
    file = tmp_path / "process.json"
    file.write_text(json.dumps(process))
    ours, theirs = (
        container.runtime("exec", "--process", file, container.id, code=None) for container in both
    )
    assert ours.code == theirs.code == 0, f"{ours}\n{theirs}"
    assert ours.lines == theirs.lines


@pytest.mark.parametrize(
    ("flags", "argv"),
    [
        (("--user", "x"), ("true",)),
        (("--user", "1:"), ("true",)),
        (("--user", "1:x"), ("true",)),
        (("--cwd", "/nowhere"), ("true",)),
        (("--cwd", "relative"), ("true",)),
        (("--process", "/nowhere"), ()),
        (("--cgroup", "nowhere"), ("true",)),
        (("--cgroup", "../.."), ("true",)),
        (("--cgroup", "nothing:x"), ("true",)),
        (("--cgroup", "a", "--cgroup", "b"), ("true",)),
        ((), ("nothing",)),
        (("--tty", "--detach"), ("true",)),
        ((), ("sh", "-c", "exit 9")),
        ((), ("sh", "-c", "kill -9 $$")),
    ],
    ids=lambda words: " ".join(words) or "-",
)
def test_exit_codes(both: list[Container], flags: tuple[str, ...], argv: tuple[str, ...]) -> None:
    ours, theirs = (
        container.runtime("exec", *flags, container.id, *argv, code=None) for container in both
    )
    assert ours.code == theirs.code, f"{ours}\n{theirs}"
    assert ours.code != 0
    assert len(ours.stderr.splitlines()) == (1 if ours.code == 255 else 0)


def test_descriptors_of_the_host_are_refused(running: Container) -> None:
    flags = ("--preserve-fds", "1")
    message = running.runtime.fails("exec", *flags, running.id, "true", code=255)
    assert message == (
        "cloche: exec failed: --preserve-fds: a VM cannot be given descriptors of the host"
    )
    assert running.runtime("exec", "--preserve-fds", "0", running.id, "true").code == 0


def test_labels_are_warned_about(running: Container) -> None:
    flags = ("--apparmor", "profile", "--process-label", "label")
    running.runtime("exec", *flags, running.id, "true")
    assert running.runtime.messages("warning") == [
        "$.apparmorProfile: not applied: the guest has no AppArmor profiles",
        "$.selinuxLabel: not applied: the guest has no SELinux policy",
    ]
    running.runtime("exec", "--apparmor", "unconfined", running.id, "true")
    assert len(running.runtime.messages("warning")) == 2


@pytest.fixture
def writable(cloche: Runtime, bundle: Bundle) -> Container:
    """A running container that may make cgroups."""
    for mount in bundle.config["mounts"]:
        if mount["destination"] == "/sys/fs/cgroup":
            mount["options"].remove("ro")
    return cloche.start(bundle.args("sleep", "1000"))


def test_a_cgroup_below_the_containers(writable: Container) -> None:
    writable.sh("mkdir -p /sys/fs/cgroup/a/b")
    assert writable.sh("cat /proc/self/cgroup", "--cgroup", "a/b").output == "0::/a/b"
    assert writable.sh("cat /proc/self/cgroup", "--cgroup", "/a").output == "0::/a"
    assert writable.sh("cat /proc/self/cgroup").output == "0::/"


def test_a_container_that_manages_its_cgroups_itself(writable: Container) -> None:
    # As a service manager does: no process may be in a cgroup that hands controllers on.
    writable.sh(
        "cd /sys/fs/cgroup; mkdir init; for each in $(cat cgroup.procs); do "
        "echo $each >init/cgroup.procs; done; echo +pids >cgroup.subtree_control"
    )
    assert writable.sh("cat /proc/self/cgroup").output == "0::/init"


def test_paused(running: Container) -> None:
    running.runtime("pause", running.id)
    message = running.runtime.fails("exec", running.id, "true", code=255)
    assert "cannot exec in a paused container" in message
    waiting = running.runtime.popen("exec", "--ignore-paused", running.id, "echo", "done")
    running.runtime("resume", running.id)
    stdout, _ = waiting.communicate(timeout=PATIENCE_SECONDS)
    assert (waiting.returncode, stdout) == (0, b"done\n")
