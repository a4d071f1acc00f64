"""Strings and numbers at their extremes: as with runc, or one line that names the field.

That is tried for every field in tests/unit/test_oci_extremes.py; here, for those that reach the
host or the guest's kernel, with real VMs: nothing is left, and the id can be used again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .bundles import Bundle
from .runtime import Container, Runtime
from .test_bad_input import changed

NUL = "a\0b"
LONG = "/a" * 2500
MIB = 1 << 20
RLIMIT_STACK = {"type": "RLIMIT_STACK", "soft": 64 * MIB, "hard": 64 * MIB}


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("linux.cgroupsPath", "/a\0", "contains a NUL byte"),
        ("linux.cgroupsPath", "/a\nb", "no name of a cgroup"),
        ("linux.cgroupsPath", LONG, "too long: 5000 bytes, at most 4095"),
        ("linux.cgroupsPath", "/" + "a" * 4000, "file name too long"),
        ("linux.cgroupsPath", "/a" * 1900, "more than 255 levels"),
        ("linux.cgroupsPath", "/a/cgroup.procs/b", "cgroup.procs"),
        ("linux.cgroupsPath", 5, "expected str, got int"),
        ("linux.namespaces", [{"type": "network", "path": "/" + NUL}], "contains a NUL byte"),
        ("linux.namespaces", [{"type": "network", "path": LONG}], "file name too long"),
        ("root.path", LONG, "file name too long"),
        ("root.path", "\ud800", "not UTF-8: U+D800, half a pair of surrogates"),
        ("hooks", {"prestart": [{"path": "/bin/true", "args": [NUL]}]}, "contains a NUL byte"),
        ("hooks", {"prestart": [{"path": "/bin/true", "timeout": 10**400}]}, "number out of range"),
        ("mounts", [{"destination": "/x", "source": LONG, "type": "bind"}], "too long: 5000 "),
        ("mounts.0.options", ["x" * 4096], "too long: 4096 bytes, at most 4095"),
        ("mounts.0.options", ["x" * 3000, "y" * 2000], "too long: 5001 bytes, at most 4095"),
        ("mounts.0.type", "x" * MIB, "too long: 1048576 bytes"),
        ("process.args", ["true", NUL], "contains a NUL byte"),
        (
            "process.args",
            ["true", "x" * 131_072],
            "argument list too long: 131072 bytes, at most 131071",
        ),
        ("process.env", [f"A{i}=" + "x" * 100_000 for i in range(100)], "argument list too long"),
        ("process.cwd", "/" + "x" * 100_000, "file name too long: 100001 bytes, at most 4095"),
        ("process.oomScoreAdj", "1", "expected int, got str"),
        ("linux.resources.memory", {"limit": 1 << 63}, "expected int <= 9223372036854775807"),
        ("linux.resources.cpu", {"quota": 10**400}, "number out of range"),
        ("linux.resources.cpu", {"cpus": "0-8191," * 200_000 + "0"}, "too long: 1400001 bytes"),
        ("vm", {"hwConfig": {"memory": 1 << 70}}, "number out of range"),
        ("vm", {"hypervisor": {"path": "/" + NUL}}, "contains a NUL byte"),
        ("annotations", {NUL: "x"}, "contains a NUL byte"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_left(
    cloche: Runtime, bundle: Bundle, path: str, value: object, problem: str
) -> None:
    name = cloche.new_id()
    bundle.args("true").write(changed(bundle.config, path, value))
    message = cloche.fails("run", "--bundle", bundle.path, name)
    assert problem in message
    assert f"$.{path.partition('.')[0]}" in message
    assert len(message) < 1000
    assert cloche.leftovers() == []
    cloche("run", "--bundle", bundle.save(), name)


def test_a_cgroup_that_only_its_files_forbid(cloche: Runtime, bundle: Bundle) -> None:
    """What was made of the path before it came to that is gone as well."""
    bundle.linux["cgroupsPath"] = f"/{cloche.new_id()}/tasks/b"
    bundle.linux["resources"] = {}
    message = cloche.fails("create", "--bundle", bundle.save(), cloche.new_id())
    assert "$.linux.cgroupsPath: " in message
    assert cloche.leftovers() == []


CONTROLS = "a\x01\x1b[31m\x7f\x85\r\tb\u202e\U0001f600"


def _argument(bundle: Bundle) -> None:
    bundle.args("printf", "%s", CONTROLS + "\n")


def _environment(bundle: Bundle) -> None:
    bundle.process["env"].append(f"WEIRD={CONTROLS}\n{CONTROLS}")
    bundle.sh('printf %s "$WEIRD"')


def _folder(bundle: Bundle) -> None:
    bundle.process["cwd"] = f"/tmp/{CONTROLS}\n"
    bundle.args("pwd")


def _hostname(bundle: Bundle) -> None:
    bundle.config["hostname"] = CONTROLS
    bundle.args("hostname")


def _mount(bundle: Bundle) -> None:
    bundle.mount(f"/mnt/{CONTROLS}\n", "tmpfs", CONTROLS, "size=1m")
    bundle.sh("tail -1 /proc/mounts | cut -d ' ' -f 1-3")


def _name_of_255(bundle: Bundle) -> None:
    bundle.process["cwd"] = "/tmp/" + "x" * 255
    bundle.args("pwd")


def _name_of_a_cgroup(bundle: Bundle) -> None:
    bundle.linux["cgroupsPath"] = f"/cloche-test/{CONTROLS}" + "x" * 300
    bundle.args("echo", "ran")


def _memory_of_every_number(bundle: Bundle) -> None:
    bundle.linux["resources"] = {"memory": {"limit": (1 << 63) - 1}}
    bundle.args("echo", "ran")


@pytest.mark.parametrize(
    "change",
    [
        *(_argument, _environment, _folder, _hostname, _mount, _name_of_255, _name_of_a_cgroup),
        _memory_of_every_number,
    ],
)
def test_what_linux_takes_is_as_with_runc(
    cloche: Runtime, runc: Runtime, bundle: Bundle, change: Callable[[Bundle], None]
) -> None:
    change(bundle)
    assert cloche.run(bundle).stdout == runc.run(bundle).stdout != b""


def with_bytes(bundle: Bundle, total: int, *, each: int = 100_000) -> Bundle:
    """*bundle* with about *total* bytes of environment, which it counts."""
    bundle.args("wc", "-c", "/proc/self/environ")
    names = [f"V{number:06}=" for number in range(total // (each + 9))]
    bundle.process["env"] += [name + "x" * each for name in names]
    return bundle


@pytest.mark.parametrize(
    ("total", "each", "limits"),
    [
        (1_900_000, 100_000, []),
        (131_072, 131_063, []),
        (5_900_000, 100_000, [RLIMIT_STACK]),
    ],
    ids=["within 2 MiB", "the longest", "within 6 MiB"],
)
def test_a_long_environment_arrives(
    cloche: Runtime, runc: Runtime, bundle: Bundle, total: int, each: int, limits: list[object]
) -> None:
    with_bytes(bundle, total, each=each).process["rlimits"] += limits
    ours = cloche.run(bundle)
    assert int(ours.output.split()[0]) > total * 0.9
    assert ours.stdout == runc.run(bundle).stdout


def test_as_many_arguments_as_there_can_be(cloche: Runtime, bundle: Bundle) -> None:
    """Each counts 9 bytes when it is empty; runc would take minutes."""
    bundle.sh("echo $#").process["rlimits"] += [RLIMIT_STACK]
    bundle.process["args"] += [""] * 650_000
    assert cloche.run(bundle).output == "649999"


@pytest.mark.parametrize(
    ("total", "each", "limits"),
    [
        (3_000_000, 100_000, []),
        (131_073, 131_064, []),
        (6_400_000, 100_000, [RLIMIT_STACK]),
    ],
    ids=["above 2 MiB", "a string", "above 6 MiB"],
)
def test_one_that_is_too_long_fails_as_with_runc(
    cloche: Runtime, runc: Runtime, bundle: Bundle, total: int, each: int, limits: list[object]
) -> None:
    with_bytes(bundle, total, each=each).process["rlimits"] += limits
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert "argument list too long" in message
    assert "argument list too long" in runc.run(bundle, code=1).stderr
    assert cloche.leftovers() == []


def process_file(folder: Path, bundle: Bundle) -> Path:
    """The process section in a file, for `exec --process`."""
    path = folder / "process.json"
    path.write_text(json.dumps(bundle.process))
    return path


def test_execs_with_a_long_environment(idle: Container, folder: Path, bundle: Bundle) -> None:
    with_bytes(bundle, 5_900_000).process["rlimits"] += [RLIMIT_STACK]
    bundle.process["env"].append("V=\x01" + "é" * 1000)  # 6 bytes in JSON for one of the process
    result = idle.runtime("exec", "--process", process_file(folder, bundle), idle.id)
    assert int(result.output.split()[0]) > 5_500_000
    with_bytes(bundle, 6_000_000)
    message = idle.runtime.fails(
        "exec", "--process", process_file(folder, bundle), idle.id, code=255
    )
    assert "$.env: argument list too long" in message
    bundle.process["env"] = ["V=" + "x" * 42_000_000]
    message = idle.runtime.fails(
        "exec", "--process", process_file(folder, bundle), idle.id, code=255
    )
    assert "bytes are too much for a request" in message
    # Nothing of it is left behind: neither in the agent nor here.
    assert idle.sh("echo still").output == "still"


def test_many_long_execs_leave_no_memory_behind(
    idle: Container, folder: Path, bundle: Bundle
) -> None:
    with_bytes(bundle, 5_900_000).process["rlimits"] += [RLIMIT_STACK]
    bundle.args("true")
    path = process_file(folder, bundle)
    for _ in range(8):  # 64 MiB of requests: half of what the agent's heap is
        idle.runtime("exec", "--process", path, idle.id)
    agent = idle.sh("cat /proc/meminfo").output
    assert "MemAvailable" in agent


FAILURES: list[tuple[str, dict[str, Any], str]] = [
    ("mounts", {"type": "nosuchfs"}, "$.mounts[7].type: mount "),
    ("mounts", {"type": "tmpfs", "options": ["nosuch"]}, "$.mounts[7].options: mount "),
    ("mounts", {"type": "tmpfs", "options": ["size=x"]}, "$.mounts[7].options: mount "),
    ("mounts", {"type": "tmpfs", "destination": "/bin/sh/x"}, "$.mounts[7].destination: mount "),
    ("process", {"cwd": "/bin/sh"}, "$.process.cwd: "),
    ("process", {"cwd": "/tmp/" + "x" * 256}, "$.process.cwd: file name too long: 256 bytes"),
    ("process", {"scheduler": {"policy": "SCHED_ISO"}}, "$.process.scheduler: "),
    (
        "process",
        {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1 << 40, "hard": 1 << 40}]},
        "$.process.rlimits[0]: ",
    ),
    ("linux", {"sysctl": {"net.core.somaxconn": "x"}}, '$.linux.sysctl["net.core.somaxconn"]: '),
    ("linux", {"sysctl": {"net.core.nosuch": "1"}}, '$.linux.sysctl["net.core.nosuch"]: '),
    ("linux", {"resources": {"unified": {"memory.x": "1"}}}, "$.linux.resources.unified: "),
    (
        "linux",
        {"resources": {"memory": {"limit": 1}}},
        "$.linux.resources.memory.limit: unable to set memory limit to 1 (a container needs ",
    ),
    (
        "linux",
        # set_mempolicy(2): for MPOL_BIND and the like only.
        {
            "memoryPolicy": {
                "mode": "MPOL_INTERLEAVE",
                "nodes": "0",
                "flags": ["MPOL_F_NUMA_BALANCING"],
            }
        },
        "$.linux.memoryPolicy: ",
    ),
    ("linux", {"devices": [{"path": "/bin/sh/x", "type": "p"}]}, "$.linux.devices"),
]


@pytest.mark.parametrize(("section", "change", "problem"), FAILURES)
def test_what_the_guest_refuses_is_told_by_field(
    cloche: Runtime, bundle: Bundle, section: str, change: dict[str, Any], problem: str
) -> None:
    if section == "mounts":
        bundle.config["mounts"].append({"destination": "/x", "source": "x", **change})
    else:
        bundle.config[section].update(change)
    message = cloche.fails("run", "--bundle", bundle.args("true").save(), cloche.new_id())
    assert problem in message
    assert cloche.leftovers() == []


def test_what_an_exec_cannot_have_is_told_by_field(
    idle: Container, folder: Path, bundle: Bundle
) -> None:
    bundle.process["scheduler"] = {"policy": "SCHED_ISO"}
    path = process_file(folder, bundle)
    assert "$.scheduler: " in idle.runtime.fails("exec", "--process", path, idle.id, code=255)


def test_a_state_of_many_pages_for_start_hooks(cloche: Runtime, bundle: Bundle) -> None:
    """One hook reads it, one does not and is not waited for."""
    bundle.config["annotations"] = {"long": "x" * MIB}
    bundle.config["hooks"] = {
        "startContainer": [
            {"path": "/bin/true"},
            {"path": "/bin/sh", "args": ["sh", "-c", "wc -c > /tmp/size"]},
        ]
    }
    assert int(cloche.run(bundle.args("cat", "/tmp/size")).output) > MIB


def test_a_request_that_no_frame_holds(cloche: Runtime, bundle: Bundle) -> None:
    bundle.config["annotations"] = {"long": "x" * 9 * MIB}
    bundle.config["hooks"] = {"startContainer": [{"path": "/bin/true"}]}
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert "$: create: request of " in message
    assert cloche.leftovers() == []


@pytest.mark.parametrize(("version", "told"), [("1.2.0", "forked"), ("1.3.0", "")])
def test_a_limit_of_no_processes(cloche: Runtime, bundle: Bundle, version: str, told: str) -> None:
    """What runc before 1.4, and the specification before 1.3, took for none."""
    bundle.config["ociVersion"] = version
    bundle.linux["resources"] = {"pids": {"limit": 0}}
    result = cloche.run(bundle.sh("(echo forked); exit"), code=None)
    assert (result.output, result.code == 0) == (told, told != "")
