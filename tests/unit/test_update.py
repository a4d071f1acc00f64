"""What an update of limits comes to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloche.base.errors import ConfigError
from cloche.model.oci import load_resources
from cloche.model.oci_linux import Resources
from cloche.model.update import changes, check_room, exceeds_limit, merged

MIB = 1 << 20
BEFORE: dict[str, Any] = {
    "memory": {"limit": 64 * MIB, "swap": 128 * MIB},
    "cpu": {"shares": 512, "quota": 150_000, "period": 100_000, "burst": 9_000},
    "pids": {"limit": 50},
    "unified": {"memory.high": "1"},
}


def resources(value: object) -> Resources:
    return load_resources(json.dumps(value).encode())


def written(update: object) -> list[tuple[str, str]]:
    before = resources(BEFORE)
    return changes(before, merged(before, resources(update)))


@pytest.mark.parametrize(
    ("update", "values"),
    [
        ({}, []),
        ({"memory": {"limit": 0, "disableOOMKiller": False}, "pids": {"limit": 0}}, []),
        ({"cpu": {"shares": 512, "quota": 0}}, []),
        ({"cpu": {"idle": 0}}, [("cpu.idle", "0")]),
        ({"cpu": {"period": 50_000}}, [("cpu.max", "150000 50000")]),
        ({"memory": {"swap": 65 * MIB}}, [("memory.swap.max", str(MIB))]),
        (
            {"memory": {"limit": 65 * MIB}},
            [("memory.max", str(65 * MIB)), ("memory.swap.max", str(63 * MIB))],
        ),
        ({"memory": {"limit": -1}}, [("memory.max", "max"), ("memory.swap.max", "max")]),
        (
            {"cpu": {"quota": 8_000, "burst": 1_000}},
            [("cpu.max.burst", "1000"), ("cpu.max", "8000 100000")],
        ),
        (
            {"cpu": {"quota": 160_000, "burst": 10_000}},
            [("cpu.max", "160000 100000"), ("cpu.max.burst", "10000")],
        ),
        ({"cpu": {"cpus": "3,5"}}, [("cpuset.cpus", "0-1")]),
        ({"unified": {"memory.max": "7"}}, [("memory.max", "7")]),
    ],
)
def test_changes(update: object, values: list[tuple[str, str]]) -> None:
    assert written(update) == values


def test_a_weight_comes_back_when_a_cgroup_is_idle_no_longer() -> None:
    idle = merged(resources(BEFORE), resources({"cpu": {"idle": 1}}))
    assert ("cpu.weight", "20") in changes(idle, merged(idle, resources({"cpu": {"idle": 0}})))


@pytest.mark.parametrize(
    ("update", "path"),
    [
        ({"memory": {"limit": 161 * MIB, "swap": -1}}, "$.memory.limit"),
        ({"cpu": {"quota": 201_000}}, "$.cpu.quota"),
        ({"cpu": {"period": 70_000}}, "$.cpu.quota"),
        ({"cpu": {"cpus": "0-2"}}, "$.cpu.cpus"),
    ],
)
def test_beyond_the_vm(update: object, path: str) -> None:
    before = resources(BEFORE)
    with pytest.raises(ConfigError, match=path.replace("$", r"\$")):
        check_room(before, merged(before, resources(update)), room=160 * MIB, cpus=2)


def test_within_the_vm() -> None:
    before = resources(BEFORE)
    update = {"memory": {"limit": 160 * MIB, "swap": -1}, "cpu": {"quota": 200_000, "cpus": "6,7"}}
    check_room(before, merged(before, resources(update)), room=160 * MIB, cpus=2)
    # What is not changed is not checked: a VM may have fewer processors than were asked for.
    check_room(before, merged(before, resources({"pids": {"limit": 2}})), room=1, cpus=1)


@pytest.mark.parametrize(
    ("checked", "limit", "refused"),
    [(True, 10, True), (True, 30, False), (False, 10, False), (True, -1, False)],
)
def test_check_before_update(checked: bool, limit: int, refused: bool) -> None:
    update = {"memory": {"limit": limit, "swap": -1, "checkBeforeUpdate": checked}}
    before = resources({})
    after = merged(before, resources(update))
    assert bool(exceeds_limit(after, changes(before, after), 20)) == refused
