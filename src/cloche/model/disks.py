"""Which of the host's block devices a container is given; asked on the start path.

Imports next to nothing: config.json is only glanced at when QEMU needs to know, and
the plan is made of the typed one later. Both ask here, so both come to the same disks.
"""

from __future__ import annotations

import os
import stat

from cloche.base.files import read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Number = tuple[int, int]

# A machine of type microvm has room for no more beside its other devices on every QEMU.
MOST_DISKS = 8
LOOP = 7
RAM = 1


def chosen_disks(
    devices: list[dict[str, Any]], mounts: list[dict[str, Any]], rules: list[dict[str, Any]]
) -> dict[Number, bool]:
    """The disks, in the order of their slots: device number → whether it is only read.

    *devices* are the block devices among the container's nodes: those get a disk that a rule of
    the device controller names by number and lets be read; wildcards (``--privileged``) do not
    hand out the host's disks. *mounts* get the disks that their sources name. All as in the JSON.
    """
    disks: dict[Number, bool] = {}
    for device in devices:
        number = (device.get("major") or 0, device.get("minor") or 0)
        access = _access(rules, number)
        if "r" in access and is_of_the_host(number):
            disks[number] = "w" not in access
    for mount in mounts:
        source = source_number(mount["source"])
        if source is not None and is_of_the_host(source):
            read_only = "ro" in (mount.get("options") or [])
            disks[source] = disks.get(source, True) and read_only
    return disks


def source_number(path: str) -> Number | None:
    """The number of the block device at *path*; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    if stat.S_ISBLK(status.st_mode):
        return os.major(status.st_rdev), os.minor(status.st_rdev)
    return None


def is_of_the_host(number: Number) -> bool:
    """Whether it is a disk: RAM disks, and loop devices with nothing behind them, are not."""
    if number[0] == LOOP:
        size = read_text(f"/sys/dev/block/{number[0]}:{number[1]}/size")
        return (size or "0").strip() != "0"
    return number[0] != RAM


def _access(rules: list[dict[str, Any]], number: Number) -> set[str]:
    """What the rules allow in the end; nothing where none of them names the device itself."""
    access: set[str] = set()
    named = False
    for rule in rules:
        kind = rule.get("type") or "a"
        wanted = tuple(None if rule.get(key) == -1 else rule.get(key) for key in ("major", "minor"))
        fits = all(want in (None, own) for want, own in zip(wanted, number, strict=True))
        if kind not in ("a", "b") or not fits:
            continue
        letters = rule.get("access") or "rwm"
        if rule["allow"]:
            named |= kind == "b" and wanted == number
            access.update(letters)
        else:
            access.difference_update(letters)
    return access if named else set()
