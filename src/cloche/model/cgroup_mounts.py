"""Binds of the host's cgroup file systems, in whose place a container sees the guest's.

``podman --systemd``, and recipes for systemd with Docker, bind the host's hierarchies into the
container, so that the systemd in it can make cgroups for its services. The host's say nothing of
processes in a guest. The guest's own tree (cgroup v2) does, from the container's cgroup downwards.
"""

from __future__ import annotations

import os

from cloche.base.typed import replace
from cloche.model.mounts import MS_RDONLY, parse_options
from cloche.model.validate_mounts import is_bind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloche.model.oci import Mount

HOST_CGROUPS = "/sys/fs/cgroup"
CGROUP_TYPES = ("cgroup", "cgroup2")


def is_host_cgroup(mount: Mount) -> bool:
    """Whether *mount* binds what the host has below /sys/fs/cgroup."""
    return is_bind(mount) and _is_within(os.path.normpath(mount.source), HOST_CGROUPS)


def shows_cgroups(mount: Mount) -> bool:
    """Whether *mount* shows the container its cgroup, as a file system or as a bind."""
    return mount.type in CGROUP_TYPES or is_host_cgroup(mount)


def cgroup_mounts(mounts: Sequence[Mount]) -> dict[int, Mount | None]:
    """What stands in the place of mounts, by index: one of the guest's cgroups, or nothing.

    A bind below another one of them is a hierarchy of cgroup v1; v2 has one tree only. What may
    be written to there may be written to in the tree.
    """
    shown = [index for index, mount in enumerate(mounts) if shows_cgroups(mount)]
    views: dict[int, Mount | None] = {
        index: _view(mounts[index]) for index in shown if is_host_cgroup(mounts[index])
    }
    for index in list(views):
        place = _target(mounts[index])
        above = [one for one in shown if one != index and _is_below(place, _target(mounts[one]))]
        if above:
            views[index] = None
            if not _is_read_only(mounts[index]):
                views[above[-1]] = _writable(views.get(above[-1]) or mounts[above[-1]])
    return views


def _view(mount: Mount) -> Mount:
    """The guest's cgroups in place of a bind."""
    kept = (word for word in mount.options if word not in ("bind", "rbind"))
    view = replace(mount, type="cgroup", source="cgroup", options=(*kept, "nosuid", "noexec"))
    # Of a tmpfs with the hierarchies of v1 in it, "ro" binds the tmpfs only.
    has_one_tree = os.path.exists(f"{HOST_CGROUPS}/cgroup.controllers")
    return view if has_one_tree else _writable(view)


def _writable(mount: Mount) -> Mount:
    return replace(
        mount, options=tuple(word for word in mount.options if word not in ("ro", "rro"))
    )


def _is_read_only(mount: Mount) -> bool:
    return bool(parse_options(mount.options).flags & MS_RDONLY)


def _target(mount: Mount) -> str:
    return os.path.normpath("/" + mount.destination.lstrip("/"))


def _is_within(path: str, top: str) -> bool:
    return path == top or _is_below(path, top)


def _is_below(path: str, top: str) -> bool:
    return path.startswith(top.rstrip("/") + "/")
