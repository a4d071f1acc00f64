"""User and time namespaces: linux.uidMappings, gidMappings and timeOffsets.

Both are made in the guest. Files on the share carry the host's ids in the guest too, so a mapping
means there what it means under runc: container ids to the ids that files have on the host.
"""

from __future__ import annotations

import itertools
import posixpath

from cloche.base.syscalls import MS_RDONLY
from cloche.model.cgroup_mounts import CGROUP_TYPES
from cloche.model.mounts import parse_options
from cloche.model.problems import quoted, refuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from cloche.model.oci import Config, Process
    from cloche.model.oci_linux import IDMapping, Linux

CLOCKS = ("monotonic", "boottime")
_MAX_MAPPINGS = 340  # UID_GID_MAP_MAX_EXTENTS of the kernel
_IDS = 1 << 32


def has_own_users(linux: Linux) -> bool:
    """Whether a user namespace of the container's own is asked for."""
    return any(namespace.type == "user" for namespace in linux.namespaces)


def check_users(linux: Linux) -> None:
    """ConfigError for mappings that no user namespace can have, or that have none."""
    fields = (("uidMappings", linux.uid_mappings), ("gidMappings", linux.gid_mappings))
    for name, mappings in fields:
        path = f"$.linux.{name}"
        if not has_own_users(linux):
            if mappings:
                refuse(path, "there is no user namespace that it could belong to")
            continue
        if not mappings:
            refuse(path, "missing: a user namespace needs it")
        _check_mappings(mappings, path)


def check_clocks(linux: Linux) -> None:
    """ConfigError for time offsets that no time namespace can have, or that have none."""
    has_own = any(namespace.type == "time" for namespace in linux.namespaces)
    if linux.time_offsets and not has_own:
        refuse("$.linux.timeOffsets", "there is no time namespace that it could belong to")
    for clock, offset in linux.time_offsets.items():
        if clock not in CLOCKS:
            refuse("$.linux.timeOffsets", f"expected one of {CLOCKS}, got {quoted(clock)}")
        if offset.nanosecs >= 1_000_000_000:
            path = f"$.linux.timeOffsets.{clock}.nanosecs"
            refuse(path, f"expected less than a second, got {offset.nanosecs}")


def namespace_plan(config: Config) -> dict[str, object]:
    """The optional fields of the plan's Container: users and time_offsets."""
    linux = config.linux
    plan: dict[str, object] = {}
    if has_own_users(linux):
        plan["users"] = {
            "uid_map": _lines(linux.uid_mappings),
            "gid_map": _lines(linux.gid_mappings),
        }
    if linux.time_offsets:
        plan["time_offsets"] = "".join(
            f"{clock} {offset.secs} {offset.nanosecs}\n"
            for clock, offset in linux.time_offsets.items()
        )
    return plan


def cgroup_owner(config: Config) -> dict[str, object]:
    """Who gets the container's cgroup: its first process's user (config-linux.md, "Ownership").

    Where it is mounted writable in a cgroup namespace of its own; nothing where root has it anyway.
    """
    linux = config.linux
    has_own = any(namespace.type == "cgroup" for namespace in linux.namespaces)
    is_writable = any(
        mount.type in CGROUP_TYPES
        and posixpath.normpath(mount.destination) == "/sys/fs/cgroup"
        and not parse_options(mount.options).flags & MS_RDONLY
        for mount in config.mounts
    )
    uid = config.process.user.uid
    if has_own_users(linux):
        uid = _outside(linux.uid_mappings, uid, "$.process.user.uid", "uid")
    return {"cgroup_owner": uid} if has_own and is_writable and uid else {}


def mapped_devices(devices: list[dict[str, object]], linux: Linux) -> list[dict[str, object]]:
    """Device nodes with the owners that they have outside of a user namespace."""
    if not has_own_users(linux):
        return devices
    return [
        {
            **device,
            "uid": _outside(linux.uid_mappings, device["uid"], "$.linux.devices", "uid"),
            "gid": _outside(linux.gid_mappings, device["gid"], "$.linux.devices", "gid"),
        }
        for device in devices
    ]


def stdio_owner(process: Process, linux: Linux, path: str) -> dict[str, object]:
    """Whose the process's pipes are outside of its user namespace; nothing where it has none.

    ConfigError when its user or a group of its is not mapped; *path* is the JSON path of *process*.
    """
    if not has_own_users(linux):
        return {}
    user = process.user
    for index, gid in enumerate((user.gid, *user.additional_gids)):
        name = f"additionalGids[{index - 1}]" if index else "gid"
        _outside(linux.gid_mappings, gid, f"{path}.user.{name}", "gid")
    return {"stdio_owner": _outside(linux.uid_mappings, user.uid, f"{path}.user.uid", "uid")}


def _check_mappings(mappings: Sequence[IDMapping], path: str) -> None:
    if len(mappings) > _MAX_MAPPINGS:
        refuse(path, f"Linux takes at most {_MAX_MAPPINGS}")
    for index, mapping in enumerate(mappings):
        if not mapping.size:
            refuse(f"{path}[{index}].size", "expected more than 0")
        if max(mapping.container_id, mapping.host_id) + mapping.size > _IDS:
            refuse(f"{path}[{index}].size", "reaches beyond the last id, 4294967295")
    for name in ("container_id", "host_id"):
        ranges = sorted((getattr(mapping, name), mapping.size) for mapping in mappings)
        for (start, size), (following, _) in itertools.pairwise(ranges):
            if start + size > following:
                refuse(path, f"id {following} is mapped twice")
    if not any(mapping.container_id == 0 for mapping in mappings):
        refuse(path, "the container's root, 0, is not mapped")


def _outside(mappings: Sequence[IDMapping], number: Any, path: str, kind: str) -> int:  # noqa: ANN401 (of a plan)
    """The id outside that *number* inside stands for."""
    for mapping in mappings:
        if mapping.container_id <= number < mapping.container_id + mapping.size:
            return int(mapping.host_id + number - mapping.container_id)
    refuse(path, f"{kind} {number} is not mapped in $.linux.{kind}Mappings")


def _lines(mappings: Sequence[IDMapping]) -> str:
    """The contents of uid_map or gid_map (user_namespaces(7))."""
    return "".join(
        f"{mapping.container_id} {mapping.host_id} {mapping.size}\n" for mapping in mappings
    )
