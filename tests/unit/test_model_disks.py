"""Which block devices of the host a container is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloche.model.devices import device_plan
from cloche.model.disks import chosen_disks
from cloche.model.oci_linux import Device

SDA = {"type": "b", "major": 8, "minor": 0}
SDA1 = {"type": "b", "major": 8, "minor": 1}
DENY_ALL = {"allow": False, "access": "rwm"}
ALLOW_ALL = {"allow": True, "access": "rwm"}


def allow(device: dict[str, Any], access: str, **changes: object) -> dict[str, Any]:
    """A rule for *device*."""
    return {"allow": True, **device, "access": access, **changes}


@pytest.mark.parametrize(
    ("rules", "chosen"),
    [
        ([DENY_ALL, allow(SDA, "rwm")], {(8, 0): False}),
        ([DENY_ALL, allow(SDA, "r")], {(8, 0): True}),
        ([DENY_ALL, allow(SDA, "")], {(8, 0): False}),
        ([allow(SDA, "rwm"), DENY_ALL], {}),
        ([allow(SDA, "rw"), {**allow(SDA, "w"), "allow": False}], {(8, 0): True}),
        ([allow(SDA, "w")], {}),
        ([], {}),
        ([ALLOW_ALL], {}),
        ([allow(SDA, "r"), ALLOW_ALL], {(8, 0): False}),
        ([allow(SDA, "rwm", minor=-1)], {}),
        ([allow(SDA, "rwm", type="c")], {}),
        ([allow(SDA1, "rwm")], {}),
    ],
)
def test_rules_decide(rules: list[dict[str, Any]], chosen: dict[tuple[int, int], bool]) -> None:
    assert chosen_disks([SDA], [], rules) == chosen


def test_slots_are_in_the_order_of_the_devices() -> None:
    rules = [allow(SDA, "rwm"), allow(SDA1, "r")]
    assert list(chosen_disks([SDA1, SDA, SDA1], [], rules).items()) == [
        ((8, 1), True),
        ((8, 0), False),
    ]


def test_ram_disks_and_empty_loop_devices_are_the_guests() -> None:
    own = [{"type": "b", "major": 1, "minor": 0}, {"type": "b", "major": 7, "minor": 999}]
    assert chosen_disks(own, [], [allow(each, "rwm") for each in own]) == {}


def test_sources_of_mounts_that_are_no_disks(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    sources = [str(tmp_path / "file"), str(tmp_path / "none"), "/dev/null", "/a\0b"]
    assert chosen_disks([], [{"type": "ext4", "source": source} for source in sources], []) == {}


def test_nodes_name_their_disks() -> None:
    devices = (Device("/dev/xvda", "b", 8, 0, gid=6), Device("/dev/sdb", "b", 8, 16))
    nodes, warnings = device_plan(devices, {(8, 0): "cloche2"})
    assert nodes[0] == {
        "path": "/dev/xvda",
        "mode": 0o060666,
        "major": 0,
        "minor": 0,
        "uid": 0,
        "gid": 6,
        "disk": "cloche2",
    }
    assert "/dev/sdb" not in {node["path"] for node in nodes}
    assert [warning for warning in warnings if '"/dev/sdb" (8:16)' in warning] == warnings != []
