"""User and time namespaces: from config.json to the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloche.base.errors import ConfigError
from cloche.model.spec import default_spec

from .oci_data import compiled, compiled_exec

NEWTIME, NEWUSER, NEWNET = 0x80, 0x10000000, 0x40000000
ROOT = {"containerID": 0, "hostID": 100_000, "size": 1000}


def config(
    uids: list[dict[str, int]] | None = None,
    gids: list[dict[str, int]] | None = None,
    namespaces: tuple[str, ...] = ("user",),
    **linux: object,
) -> dict[str, Any]:
    """The default spec with further namespaces and mappings."""
    changed: dict[str, Any] = default_spec()
    changed["linux"]["namespaces"] += [{"type": name} for name in namespaces]
    if uids is not None:
        changed["linux"] |= {"uidMappings": uids, "gidMappings": gids or uids}
    changed["linux"] |= linux
    return changed


def test_without_the_namespaces_the_plan_says_nothing(tmp_path: Path) -> None:
    plan = compiled(default_spec(), tmp_path)[0]
    assert not plan.keys() & {"users", "time_offsets"}
    assert "stdio_owner" not in plan["process"]
    assert plan["namespaces"] & (NEWUSER | NEWNET | NEWTIME) == 0


def test_mappings_are_lines_of_the_kernels_files(tmp_path: Path) -> None:
    uids = [ROOT, {"containerID": 1000, "hostID": 5, "size": 1}]
    plan = compiled(config(uids, [ROOT]), tmp_path)[0]
    assert plan["users"] == {
        "uid_map": "0 100000 1000\n1000 5 1\n",
        "gid_map": "0 100000 1000\n",
    }
    assert plan["namespaces"] & (NEWUSER | NEWNET) == NEWUSER | NEWNET


def test_pipes_and_devices_are_named_by_the_hosts_ids(tmp_path: Path) -> None:
    asked = config([ROOT, {"containerID": 1000, "hostID": 5, "size": 1}], [ROOT])
    asked["process"]["user"] = {"uid": 1000, "gid": 3}
    asked["linux"]["devices"] = [
        {"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "uid": 7, "gid": 8}
    ]
    plan = compiled(asked, tmp_path)[0]
    # The ids in the process itself are those that it sees.
    process = plan["process"]
    assert (process["uid"], process["gid"], process["stdio_owner"]) == (1000, 3, 5)
    owners = {device["path"]: (device["uid"], device["gid"]) for device in plan["devices"]}
    assert owners["/dev/mine"] == (100_007, 100_008)
    assert owners["/dev/null"] == (100_000, 100_000)
    assert compiled_exec(asked, tmp_path)[0]["stdio_owner"] == 5


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({"uid": 1000, "gid": 0}, "user.uid: uid 1000 is not mapped in $.linux.uidMappings"),
        ({"uid": 0, "gid": 5000}, "user.gid: gid 5000 is not mapped in $.linux.gidMappings"),
        (
            {"uid": 0, "gid": 0, "additionalGids": [1, 1000]},
            "user.additionalGids[1]: gid 1000 is not mapped",
        ),
    ],
)
def test_who_is_not_mapped_cannot_run(
    tmp_path: Path, user: dict[str, object], message: str
) -> None:
    asked = config([ROOT])
    asked["process"]["user"] = user
    with pytest.raises(ConfigError) as caught:
        compiled(asked, tmp_path)
    assert f"$.process.{message}" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        compiled_exec(asked, tmp_path)
    assert f"$.{message}" in str(caught.value)


@pytest.mark.parametrize(
    ("uids", "message"),
    [
        (None, "$.linux.uidMappings: missing: a user namespace needs it"),
        ([{**ROOT, "containerID": 1}], "$.linux.uidMappings: the container's root, 0, is not"),
        ([{**ROOT, "size": 0}], "$.linux.uidMappings[0].size: expected more than 0"),
        ([{**ROOT, "hostID": 2**32 - 1}], "$.linux.uidMappings[0].size: reaches beyond the last"),
        (
            [ROOT, {"containerID": 999, "hostID": 5, "size": 1}],
            "$.linux.uidMappings: id 999 is mapped twice",
        ),
        (
            [ROOT, {"containerID": 5000, "hostID": 100_999, "size": 1}],
            "$.linux.uidMappings: id 100999 is mapped twice",
        ),
        (
            [{"containerID": at, "hostID": at, "size": 1} for at in range(341)],
            "$.linux.uidMappings: Linux takes at most 340",
        ),
    ],
)
def test_mappings_that_cannot_be(
    tmp_path: Path, uids: list[dict[str, int]] | None, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        compiled(config(uids), tmp_path)
    assert message in str(caught.value)


def test_time_offsets_are_lines_of_the_kernels_file(tmp_path: Path) -> None:
    offsets = {"monotonic": {"secs": -5}, "boottime": {"secs": 7, "nanosecs": 9}}
    plan = compiled(config(namespaces=("time",), timeOffsets=offsets), tmp_path)[0]
    assert plan["time_offsets"] == "monotonic -5 0\nboottime 7 9\n"
    assert plan["namespaces"] & NEWTIME


@pytest.mark.parametrize(
    ("namespaces", "linux", "message"),
    [
        ((), {"uidMappings": [ROOT]}, "$.linux.uidMappings: there is no user namespace"),
        ((), {"timeOffsets": {"boottime": {}}}, "$.linux.timeOffsets: there is no time namespace"),
        (
            ("time",),
            {"timeOffsets": {"realtime": {"secs": 1}}},
            "$.linux.timeOffsets: expected one of ('monotonic', 'boottime'), got \"realtime\"",
        ),
        (
            ("time",),
            {"timeOffsets": {"boottime": {"nanosecs": 1_000_000_000}}},
            "$.linux.timeOffsets.boottime.nanosecs: expected less than a second",
        ),
    ],
)
def test_what_belongs_to_no_namespace_or_clock(
    tmp_path: Path, namespaces: tuple[str, ...], linux: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        compiled(config(namespaces=namespaces, **linux), tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("users", "options", "namespaces", "owner"),
    [
        (True, ["rw"], ("user",), 100_005),
        (False, ["rw"], (), 5),
        (True, ["ro"], ("user",), None),
        (False, ["nosuid", "ro", "rw"], (), 5),
    ],
)
def test_a_writable_cgroup_belongs_to_the_first_process(
    tmp_path: Path, users: bool, options: list[str], namespaces: tuple[str, ...], owner: int | None
) -> None:
    asked = config([ROOT] if users else None, namespaces=namespaces)
    asked["process"]["user"] = {"uid": 5, "gid": 5}
    for mount in asked["mounts"]:
        if mount["destination"] == "/sys/fs/cgroup":
            mount["options"] = options
    assert compiled(asked, tmp_path)[0].get("cgroup_owner") == owner
    shared = [each for each in asked["linux"]["namespaces"] if each["type"] != "cgroup"]
    asked["linux"]["namespaces"] = shared
    assert "cgroup_owner" not in compiled(asked, tmp_path)[0]
