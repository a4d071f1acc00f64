"""The plan for the agent: compiled from configs of real engines, and piece by piece."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloche.base.errors import ConfigError
from cloche.heart.launch import Glance
from cloche.model.cgroup import LEAST_MEMORY
from cloche.model.features import features
from cloche.model.mounts import FLAGS, parse_options
from cloche.model.oci import load_config, load_process
from cloche.model.plan import compile_process, host_binds, limits
from cloche.model.spec import default_spec

from .oci_data import DATA, ENGINES, compiled, raw, with_sources, write

NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWPID = 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x20000000
RDONLY, NOSUID, NODEV, NOEXEC, BIND, REC = 1, 2, 4, 8, 4096, 16384
PRIVATE, SLAVE = 1 << 18, 1 << 19

# docs/protocol.md, type Container and type Process
CONTAINER_FIELDS = {
    "id", "root", "read_only", "mounts", "namespaces", "join", "hostname", "domainname",
    "cgroup", "cgroup_values", "device_filter", "sysctls", "devices", "links", "masked_paths",
    "read_only_paths", "propagation", "process", "start_hooks",
}  # fmt: skip
PROCESS_FIELDS = {
    "args", "env", "cwd", "uid", "gid", "groups", "umask", "bounding", "effective",
    "inheritable", "permitted", "ambient", "rlimits", "no_new_privs", "seccomp", "seccomp_flags",
    "oom_score_adj", "terminal", "rows", "columns", "stdin", "stdout", "stderr",
}  # fmt: skip


def spec(**fields: object) -> dict[str, Any]:
    return {**default_spec(), **fields}


def mount_at(plan: dict[str, Any], target: str) -> dict[str, Any]:
    (found,) = [mount for mount in plan["mounts"] if mount["target"] == target]
    return dict(found)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("seccomp")


@pytest.mark.parametrize("name", ENGINES)
def test_configs_of_real_engines_compile(name: str, tmp_path: Path, cache: Path) -> None:
    plan, warnings = compiled(with_sources(raw(name), tmp_path), tmp_path, cache)
    assert plan.keys() == CONTAINER_FIELDS
    assert plan["process"].keys() == PROCESS_FIELDS
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(plan)) == plan
    assert plan["process"]["args"] == raw(name)["process"]["args"]
    assert len(plan["mounts"]) == len(raw(name)["mounts"])
    assert all(warning.startswith("$.") for warning in warnings)


@pytest.mark.parametrize("name", ["docker-default", "podman-default", "containerd-default"])
def test_default_containers_give_no_warnings(name: str, tmp_path: Path, cache: Path) -> None:
    assert compiled(with_sources(raw(name), tmp_path), tmp_path, cache)[1] == []


def test_dockers_default_container(tmp_path: Path, cache: Path) -> None:
    plan, _ = compiled(with_sources(raw("docker-default"), tmp_path), tmp_path, cache)
    assert plan["namespaces"] == NEWNS | NEWUTS | NEWPID | NEWIPC | NEWCGROUP
    assert plan["cgroup_values"] == []
    assert ["net/ipv4/ip_unprivileged_port_start", "0"] in plan["sysctls"]
    hosts = mount_at(plan, "/etc/hosts")
    assert hosts["source"] == "/run/share/volume/9"
    assert (hosts["type"], hosts["kind"], hosts["data"]) == ("bind", "file", "")
    assert hosts["flags"] == BIND | REC
    assert hosts["propagation"] == PRIVATE | REC
    cgroup = mount_at(plan, "/sys/fs/cgroup")
    assert (cgroup["type"], cgroup["data"]) == ("cgroup2", "")
    assert cgroup["flags"] == RDONLY | NOSUID | NODEV | NOEXEC
    assert mount_at(plan, "/dev/shm")["data"] == "mode=1777,size=67108864"
    assert plan["process"]["seccomp"]
    assert plan["process"]["umask"] == 0o022
    assert plan["propagation"] == SLAVE | REC


def test_dockers_options(tmp_path: Path, cache: Path) -> None:
    plan, warnings = compiled(with_sources(raw("docker-many"), tmp_path), tmp_path, cache)
    assert plan["read_only"]
    assert plan["cgroup_values"] == [
        ["memory.max", str(256 << 20)],
        ["memory.swap.max", str(256 << 20)],
        ["memory.low", str(128 << 20)],
        ["cpu.weight", "20"],
        ["cpu.max", "150000 100000"],
        ["pids.max", "50"],
    ]
    assert mount_at(plan, "/f")["flags"] == BIND | REC | RDONLY
    assert mount_at(plan, "/scratch")["data"] == "size=10m,mode=1770"
    process = plan["process"]
    assert [4, 2**64 - 1, 2**64 - 1] in process["rlimits"]
    assert [7, 1000, 2000] in process["rlimits"]
    assert (process["uid"], process["groups"], process["oom_score_adj"]) == (1000, [1000, 7], 100)
    assert process["bounding"] & 1 == 0  # CAP_CHOWN dropped
    assert process["bounding"] & 1 << 12  # CAP_NET_ADMIN added
    assert warnings == []


def test_host_namespaces_are_the_guests_own(tmp_path: Path, cache: Path) -> None:
    for name in ("docker-hostns", "podman-hostns"):
        plan, _ = compiled(with_sources(raw(name), tmp_path), tmp_path, cache)
        assert plan["namespaces"] == NEWNS | NEWCGROUP


def test_privileged_leaves_out_the_hosts_disks(tmp_path: Path, cache: Path) -> None:
    plan, warnings = compiled(with_sources(raw("docker-privileged"), tmp_path), tmp_path, cache)
    paths = {device["path"] for device in plan["devices"]}
    assert {"/dev/null", "/dev/net/tun", "/dev/loop0"} <= paths
    assert "/dev/vda" not in paths
    assert any('"/dev/vda" (254:0)' in warning for warning in warnings)
    assert plan["process"]["seccomp"] is None


def test_devices_and_links_are_runcs(tmp_path: Path) -> None:
    plan, _ = compiled(spec(), tmp_path)
    nodes = {device["path"]: device for device in plan["devices"]}
    assert sorted(nodes) == [
        f"/dev/{name}" for name in ("full", "null", "random", "tty", "urandom", "zero")
    ]
    assert nodes["/dev/null"] == {
        "path": "/dev/null", "mode": 0o020666, "major": 1, "minor": 3, "uid": 0, "gid": 0,
    }  # fmt: skip
    assert ["pts/ptmx", "/dev/ptmx"] in plan["links"]
    assert ["/proc/self/fd", "/dev/fd"] in plan["links"]


def test_a_device_of_the_config_replaces_the_default(tmp_path: Path) -> None:
    config = spec()
    config["linux"]["devices"] = [
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 5},
        {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
        {"path": "/dev/pipe", "type": "p"},
        {"path": "/dev/odd", "type": "c", "major": 240, "minor": 0},
    ]
    plan, warnings = compiled(config, tmp_path)
    nodes = {device["path"]: device for device in plan["devices"]}
    assert nodes["/dev/null"]["mode"] == 0o020600
    assert nodes["/dev/null"]["uid"] == 5
    assert nodes["/dev/pipe"]["mode"] == 0o010666
    assert "/dev/ptmx" not in nodes
    assert len(nodes) == 8
    (warning,) = warnings
    assert '"/dev/odd" (240:0)' in warning


def test_a_bound_dev_is_left_alone(tmp_path: Path) -> None:
    config = spec(mounts=[{"destination": "/dev/", "source": "/dev", "options": ["rbind"]}])
    plan, _ = compiled(config, tmp_path)
    assert plan["devices"] == []
    assert plan["links"] == []


def test_mounts_keep_their_order_and_options(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    config = spec(
        mounts=[
            {"destination": "/a", "type": "tmpfs", "options": ["ro", "rw", "size=1m", "noatime"]},
            {"destination": "/b", "source": "data", "options": ["bind", "rro", "rnoatime"]},
            {"destination": "c", "type": "ext4", "source": "/dev/x", "options": ["discard"]},
            {"destination": "/d", "type": "tmpfs", "source": "t", "options": ["tmpcopyup"]},
            {"destination": "/e", "type": "rbind", "source": "data", "options": ["x-y", "rslave"]},
        ]
    )
    plan, warnings = compiled(config, tmp_path)
    assert [mount["target"] for mount in plan["mounts"]] == ["/a", "/b", "/c", "/d", "/e"]
    first, second, third, fourth, fifth = plan["mounts"]
    assert (first["flags"], first["data"], first["source"]) == (
        FLAGS["noatime"][1],
        "size=1m",
        "tmpfs",
    )
    assert (second["flags"], second["kind"]) == (BIND, "dir")
    assert second["recursive_attr"] == [0x1 | 0x10, 0x70]
    assert (third["type"], third["source"], third["data"]) == ("ext4", "/dev/x", "discard")
    assert fourth["tmpcopyup"]
    assert (fifth["flags"], fifth["propagation"]) == (BIND | REC, SLAVE | REC)
    assert [warning.partition(": ")[0] for warning in warnings] == [
        "$.mounts[2].destination",
        "$.mounts[4].options",
        "$.mounts[4].options",
    ]


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    config = spec(mounts=[{"destination": "/a", "source": "gone", "options": ["bind"]}])
    with pytest.raises(ConfigError) as caught:
        host_binds(load_config(write(tmp_path, config)), str(tmp_path))
    expected = f'$.mounts[0].source: "{tmp_path}/gone": No such file or directory'
    assert str(caught.value) == expected


def test_host_binds_tell_files_from_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = spec(
        mounts=[
            {"destination": "/t", "type": "tmpfs"},
            {"destination": "/d", "source": str(tmp_path), "options": ["rbind"]},
            {"destination": "/f", "source": "file", "options": ["bind"]},
        ]
    )
    binds = host_binds(load_config(write(tmp_path, config)), str(tmp_path))
    assert [(bind.index, bind.source, bind.is_dir) for bind in binds] == [
        (1, str(tmp_path), True),
        (2, f"{tmp_path}/file", False),
    ]


def test_host_binds_carry_what_the_host_is_to_do(tmp_path: Path) -> None:
    ids = [{"containerID": 5, "hostID": 0, "size": 2}]
    here = {"source": str(tmp_path), "type": "bind"}
    config = spec(
        mounts=[
            {"destination": "/a", **here, "options": ["ridmap"], "uidMappings": ids}
            | {"gidMappings": ids},
            {"destination": "/b", **here, "options": ["rbind"]},
            {"destination": "/c", "type": "overlay", "options": ["ro", "lowerdir=/x:/y"]},
        ]
    )
    first, second, third = host_binds(load_config(write(tmp_path, config)), str(tmp_path))
    assert (first.ids, first.ids_recursive, first.recursive) == (([(5, 0, 2)],) * 2, True, False)
    assert (second.ids, second.ids_recursive, second.recursive) == (None, False, True)
    assert third.overlay == "lowerdir=/x:/y"
    plan, _ = compiled(config, tmp_path)
    overlay = mount_at(plan, "/c")
    assert (overlay["type"], overlay["data"]) == ("bind", "")
    assert overlay["flags"] & RDONLY
    assert mount_at(plan, "/a")["data"] == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs takes root")
def test_an_engines_shm_becomes_the_guests(tmp_path: Path) -> None:
    shm = tmp_path / "shm"
    shm.mkdir()
    bind = {"destination": "/dev/shm", "source": str(shm), "options": ["bind", "nosuid", "ro"]}
    config = spec(mounts=[bind])
    assert mount_at(compiled(config, tmp_path)[0], "/dev/shm")["type"] == "bind"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "shm", str(shm)], check=True)
    try:
        plan, _ = compiled(config, tmp_path)
        assert host_binds(load_config(write(tmp_path, config)), str(tmp_path)) == []
    finally:
        subprocess.run(["umount", str(shm)], check=True)
    mount = mount_at(plan, "/dev/shm")
    assert (mount["type"], mount["flags"], mount["read_only_last"]) == ("tmpfs", NOSUID, True)
    assert mount["data"] == "mode=1777,size=4194304"


@pytest.mark.parametrize(
    ("mount", "is_last"),
    [
        ({"destination": "/dev", "type": "tmpfs", "options": ["ro"]}, True),
        ({"destination": "/a", "type": "tmpfs", "options": ["nosuid", "ro"]}, True),
        ({"destination": "/dev/", "type": "bind", "source": "/tmp", "options": ["ro"]}, True),
        ({"destination": "/a", "type": "bind", "source": "/tmp", "options": ["ro"]}, False),
        ({"destination": "/sys", "type": "sysfs", "options": ["ro"]}, False),
        ({"destination": "/a", "type": "tmpfs", "options": ["rw"]}, False),
        ({"destination": "/a", "type": "tmpfs", "options": ["remount", "ro"]}, False),
    ],
)
def test_what_is_made_read_only_when_all_is_in_it(
    tmp_path: Path, mount: dict[str, Any], is_last: bool
) -> None:
    (plan,) = compiled(spec(mounts=[mount]), tmp_path)[0]["mounts"]
    assert plan.get("read_only_last", False) == is_last
    assert bool(plan["flags"] & RDONLY) == ("ro" in mount["options"] and not is_last)


def test_a_process_without_capabilities_has_none(tmp_path: Path) -> None:
    config = spec()
    del config["process"]["capabilities"]
    process = compiled(config, tmp_path)[0]["process"]
    assert [process[name] for name in ("bounding", "effective", "ambient")] == [0, 0, 0]


def test_capabilities_that_cannot_be_ambient_are_left_out_and_named(tmp_path: Path) -> None:
    config = spec()
    config["process"]["capabilities"] = {
        "permitted": ["CAP_KILL", "CAP_CHOWN"],
        "inheritable": ["CAP_KILL", "CAP_FOWNER"],
        "ambient": ["CAP_CHOWN", "CAP_FOWNER", "CAP_KILL"],
    }
    plan, warnings = compiled(config, tmp_path)
    assert plan["process"]["ambient"] == 1 << 5
    (warning,) = warnings
    assert warning.startswith("$.process.capabilities.ambient: left out")
    assert '"CAP_CHOWN", "CAP_FOWNER"' in warning


def test_unknown_capabilities_are_left_out_and_named(tmp_path: Path) -> None:
    config = spec()
    config["process"]["capabilities"] = {"bounding": ["CAP_KILL", "CAP_FLY"]}
    plan, warnings = compiled(config, tmp_path)
    assert plan["process"]["bounding"] == 1 << 5
    assert warnings == ['$.process.capabilities: unknown, left out: "CAP_FLY"']


def test_console_size(tmp_path: Path) -> None:
    config = spec()
    config["process"]["consoleSize"] = {"height": 40, "width": 132}
    process = compiled(config, tmp_path)[0]["process"]
    assert (process["terminal"], process["rows"], process["columns"]) == (True, 40, 132)


def test_start_hooks_get_the_state(tmp_path: Path) -> None:
    config = spec(
        hooks={"startContainer": [{"path": "/bin/h", "args": ["h", "x"], "timeout": 3}]},
        annotations={"a": "b"},
    )
    (hook,) = compiled(config, tmp_path)[0]["start_hooks"]
    assert (hook["path"], hook["args"], hook["env"], hook["timeout"]) == (
        "/bin/h",
        ["h", "x"],
        None,
        3,
    )
    assert json.loads(hook["stdin"]) == {
        "ociVersion": "1.3.0", "id": "web", "status": "created", "pid": 1,
        "bundle": str(tmp_path), "annotations": {"a": "b"},
    }  # fmt: skip


def test_exec_inherits_what_it_does_not_say(tmp_path: Path, cache: Path) -> None:
    config = load_config(str(DATA / "docker-many.json"))
    process = load_process(b'{"args": ["id"], "cwd": "/", "apparmorProfile": "p"}', "process.json")
    plan, warnings = compile_process(
        process, config, streams=(4, 5, 0), terminal_size=(3, 7), seccomp_cache=cache
    )
    first = compiled(with_sources(raw("docker-many"), tmp_path), tmp_path, cache)[0]["process"]
    assert plan.keys() == PROCESS_FIELDS
    for name in ("bounding", "effective", "rlimits", "seccomp", "oom_score_adj", "umask"):
        assert plan[name] == first[name], name
    assert (plan["uid"], plan["args"], plan["stderr"]) == (0, ["id"], 0)
    assert (plan["rows"], plan["columns"]) == (3, 7)
    assert [warning.partition(": ")[0] for warning in warnings] == ["$.apparmorProfile"]


@pytest.mark.parametrize(
    ("resources", "memory", "cpus"),
    [
        ({}, None, None),
        ({"memory": {"limit": -1}, "cpu": {"quota": -1}}, None, None),
        ({"memory": {"limit": 1 << 30}, "cpu": {"quota": 150000}}, 1 << 30, 1.5),
        ({"cpu": {"quota": 10000, "period": 20000, "cpus": "0-3"}}, None, 0.5),
        ({"cpu": {"cpus": "0-2,7"}}, None, 4),
    ],
)
def test_limits(
    tmp_path: Path, resources: dict[str, object], memory: int | None, cpus: float | None
) -> None:
    config = spec()
    config["linux"]["resources"] = resources
    path = write(tmp_path, config)
    found, glance = limits(load_config(path)), Glance(str(path))
    assert (found.memory, found.cpus) == (memory, cpus)
    # What the VM gets before the config is parsed.
    assert (glance.memory, glance.cpus) == (memory, cpus)


@pytest.mark.parametrize(
    ("resources", "values"),
    [
        ({"memory": {"limit": -1}}, [["memory.max", "max"], ["memory.swap.max", "max"]]),
        (
            {"memory": {"limit": LEAST_MEMORY, "swap": -1}},
            [["memory.max", str(LEAST_MEMORY)], ["memory.swap.max", "max"]],
        ),
        (
            {"memory": {"limit": LEAST_MEMORY, "swap": LEAST_MEMORY}},
            [["memory.max", str(LEAST_MEMORY)], ["memory.swap.max", "0"]],
        ),
        ({"cpu": {"shares": 2}}, [["cpu.weight", "1"]]),
        ({"cpu": {"shares": 1024}}, [["cpu.weight", "39"]]),
        ({"cpu": {"shares": 1 << 40}}, [["cpu.weight", "10000"]]),
        ({"cpu": {"shares": 1024, "idle": 1}}, [["cpu.idle", "1"]]),
        ({"cpu": {"period": 50000}}, [["cpu.max", "max 50000"]]),
        (
            {"cpu": {"quota": 2000, "burst": 1000}},
            [["cpu.max", "2000 100000"], ["cpu.max.burst", "1000"]],
        ),
        ({"pids": {"limit": -1}}, [["pids.max", "max"]]),
        ({"pids": {}}, []),
        (
            {"pids": {"limit": 4}, "unified": {"pids.max": "5", "memory.high": "7"}},
            [["pids.max", "4"], ["memory.high", "7"], ["pids.max", "5"]],
        ),
    ],
)
def test_cgroup_values(
    tmp_path: Path, resources: dict[str, object], values: list[list[str]]
) -> None:
    config = spec()
    config["linux"]["resources"] = resources
    assert compiled(config, tmp_path)[0]["cgroup_values"] == values


@pytest.mark.parametrize("limit", [1, 4096, 102400, LEAST_MEMORY - 1])
def test_no_container_starts_with_so_little_memory(tmp_path: Path, limit: int) -> None:
    config = spec()
    config["linux"]["resources"] = {"memory": {"limit": limit}}
    what = rf"\$\.linux\.resources\.memory\.limit: unable to set memory limit to {limit} \("
    with pytest.raises(ConfigError, match=what):
        compiled(config, tmp_path)


def test_sysctl_names(tmp_path: Path) -> None:
    config = spec()
    config["linux"]["sysctl"] = {
        "net.core.somaxconn": "1",
        "net/ipv4/conf/eth0.1/forwarding": "2",
        "net.ipv4.conf.eth0/1.forwarding": "3",
    }
    assert compiled(config, tmp_path)[0]["sysctls"] == [
        ["net/core/somaxconn", "1"],
        ["net/ipv4/conf/eth0.1/forwarding", "2"],
        ["net/ipv4/conf/eth0.1/forwarding", "3"],
    ]


def test_later_options_win() -> None:
    options = parse_options(["ro", "rw", "rro", "rrw", "private", "rshared", "", "uid=1", "gid=2"])
    assert options.flags == 0
    assert (options.attributes_set, options.attributes_clear) == (0, 1)
    assert options.propagation == 1 << 20 | REC
    assert options.data == "uid=1,gid=2"


def test_flags_are_those_of_mount_8(tmp_path: Path) -> None:
    """Against runc's own list, which `runc features` prints where it has that command."""
    runc = subprocess.run(["runc", "features"], capture_output=True, text=True, check=False)
    if runc.returncode:
        pytest.skip("runc is not installed, or older than 1.1")
    theirs = json.loads(runc.stdout)
    ours: dict[str, Any] = features()
    assert {*theirs["mountOptions"]} <= {*ours["mountOptions"]}
    assert {*theirs["linux"]["capabilities"]} <= {*ours["linux"]["capabilities"]}
    known = {*ours["linux"]["seccomp"]["actions"], "SCMP_ACT_NOTIFY"}
    assert {*theirs["linux"]["seccomp"]["actions"]} <= known
    assert {*theirs["linux"]["seccomp"]["archs"]} <= {*ours["linux"]["seccomp"]["archs"]}
    # runc has time namespaces since 1.2.
    assert {*theirs["linux"]["namespaces"], "time"} == {*ours["linux"]["namespaces"]}
    assert theirs["hooks"] == ours["hooks"]


@pytest.mark.parametrize(
    ("version", "values"),
    [("1.0.2", []), ("1.2.1", []), ("1.3.0", [["pids.max", "1"]]), ("1.10.0", [["pids.max", "1"]])],
)
def test_no_processes_at_all_are_a_limit_since_1_3(
    tmp_path: Path, version: str, values: list[list[str]]
) -> None:
    config = spec(ociVersion=version)
    config["linux"]["resources"] = {"pids": {"limit": 0}}
    assert compiled(config, tmp_path)[0]["cgroup_values"] == values
