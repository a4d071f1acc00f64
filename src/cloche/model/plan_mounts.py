"""The mounts of a container as the agent carries them out (docs/protocol.md, Mount)."""

from __future__ import annotations

import os
import stat

from cloche.base.typed import Struct, field
from cloche.model.cgroup_mounts import CGROUP_TYPES, cgroup_mounts, is_host_cgroup
from cloche.model.disks import source_number
from cloche.model.mounts import MS_BIND, MS_RDONLY, MS_REC, MS_REMOUNT, MountOptions, parse_options
from cloche.model.problems import quoted, refuse
from cloche.model.source_flags import (
    Below,
    bind_flags,
    flags_at,
    mounts_below,
    read_mounts,
    uncovered,
)
from cloche.model.validate_mounts import is_bind, mapped_ids

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from cloche.model.oci import Config, Mount


# What a user may mean by name; the second is where the first once was.
HOST_SHM = ("/dev/shm", "/run/shm")


Ids = tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]


class Bind(Struct):
    """A mount whose source is on the host: a bind, or an overlay of folders there."""

    index: int  # in config.mounts
    source: str  # absolute path on the host
    mode: int  # of the source, with its type
    recursive: bool = True  # with the mounts below the source
    overlay: str = ""  # options of an overlay in place of a source
    # Users and groups: (id in the file system, id as seen, how many); None: as they are.
    ids: Ids | None = None
    ids_recursive: bool = False  # also in the mounts below the source
    flags: int = 0  # MS_*, of the mount that the source lies on
    below: list[Below] = field(default=[])  # mounts below the source

    @property
    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.mode)


class Shm(Struct):
    """An engine's shared memory on the host, which becomes memory of the guest."""

    index: int  # in config.mounts
    source: str  # what containers that share it have in common
    size: int  # bytes; 0: no limit
    flags: int = 0  # MS_*, of the mount there


class Sources(Struct):
    """What the mounts of a config mean on the host, where their sources are."""

    binds: list[Bind]
    shm: list[Shm]
    root_flags: int = 0  # MS_*, of the mount that the container's root lies on


class Layout(Struct):
    """Where in the guest the supervisor put what is on the host."""

    rootfs: str
    volume: Callable[[int], str]  # Bind.index → path of its source in the guest
    disks: dict[tuple[int, int], str] = field(
        default={}
    )  # the host's device number → serial in the guest
    shm: Callable[[Shm], str] = lambda _: ""  # a tmpfs in the guest to be bound; "": one of its own


def host_binds(config: Config, bundle: str) -> list[Bind]:
    """The mounts of *config* to be shared, sources relative to *bundle* made absolute.

    Shared memory is left out: see is_guest_shm. ConfigError names a source that is missing.
    """
    binds = []
    mounts = b""
    for index, mount in enumerate(config.mounts):
        if mount.type == "overlay" and not is_bind(mount):
            # Its layers are the host's folders, and 9p is no upper layer: it is mounted there.
            data = parse_options(mount.options).data
            binds.append(Bind(index, "overlay", stat.S_IFDIR, overlay=data))
        if not is_bind(mount) or is_of_guest(mount, config):
            continue
        source = os.path.normpath(os.path.join(bundle, mount.source))
        try:
            mode = os.stat(source).st_mode
            flags = flags_at(source)
        except (OSError, ValueError) as error:  # ValueError: a name that no path can be
            why = error.strerror if isinstance(error, OSError) else str(error)
            refuse(f"$.mounts[{index}].source", f"{quoted(source)}: {why}")
        ids = mapped_ids(mount, config.linux)
        recursive = mount.type == "rbind" or bool(parse_options(mount.options).flags & MS_REC)
        is_deep = "ridmap" in mount.options
        below = []
        if recursive and stat.S_ISDIR(mode):
            mounts = mounts or read_mounts()
            below = mounts_below(source, mounts)
        bind = Bind(index, source, mode, recursive, "", ids, is_deep, flags, below)
        binds.append(bind)
    return binds


def bind_warnings(binds: Sequence[Bind]) -> list[str]:
    """Binds of what can be seen in a VM, but leads nowhere there."""
    kinds = {stat.S_IFSOCK: "socket", stat.S_IFIFO: "FIFO"}
    return [
        f"$.mounts[{bind.index}].source: a {kinds[stat.S_IFMT(bind.mode)]} of the host is there, "
        "but joins processes of the guest only"
        for bind in binds
        if stat.S_IFMT(bind.mode) in kinds
    ]


def host_sources(config: Config, bundle: str) -> Sources:
    """What the host has for the mounts of *config*; ConfigError as of host_binds."""
    binds = host_binds(config, bundle)
    found = {bind.index for bind in binds}
    shm = [
        Shm(index, mount.source, _size_of(mount.source), flags_at(mount.source))
        for index, mount in enumerate(config.mounts)
        if is_bind(mount) and index not in found and not is_host_cgroup(mount)
    ]
    return Sources(binds, shm, _root_flags(config, bundle))


def _root_flags(config: Config, bundle: str) -> int:
    """As runc: a read-only root has that flag only. An image lies on no mount of the host's."""
    root = os.path.join(bundle, config.root.path)
    has_image = config.vm is not None and config.vm.image is not None
    if config.root.readonly or has_image or not os.path.isdir(root):
        return 0
    return flags_at(root)


def _size_of(source: str) -> int:
    size = os.statvfs(source)
    return size.f_blocks * size.f_frsize


def mount_plan(config: Config, sources: Sources, layout: Layout) -> list[dict[str, object]]:
    """All mounts in order; *sources* as of host_sources."""
    by_index = {bind.index: bind for bind in sources.binds}
    memory = {shm.index: shm for shm in sources.shm}
    plan = []
    is_locked = any(namespace.type == "user" for namespace in config.linux.namespaces)
    for index, mount in planned_mounts(config):
        if index in by_index:
            plan.append(_bind(mount, by_index[index], layout, is_locked=is_locked))
        elif index in memory:
            plan.append(_guest_shm(mount, memory[index], layout))
        else:
            plan.append(_filesystem(mount, layout))
    for made in plan:
        if _is_written_to(made):
            made |= {"flags": _flags(made) & ~MS_RDONLY, "read_only_last": True}
    return plan


def planned_mounts(config: Config) -> Iterator[tuple[int, Mount]]:
    """The mounts as they are carried out, each with its index in config.mounts."""
    views = cgroup_mounts(config.mounts)
    for index, each in enumerate(config.mounts):
        mount = views.get(index, each)
        if mount is not None:
            yield index, mount


def is_of_guest(mount: Mount, config: Config) -> bool:
    """Whether a bind shows something of the guest's in place of its source on the host."""
    return is_guest_shm(mount, config) or is_host_cgroup(mount)


def _is_written_to(plan: dict[str, object]) -> bool:
    """Whether it is to be read-only, but nodes and mount points are made in it: as runc, any tmpfs
    and whatever is /dev.
    """
    flags = _flags(plan)
    read_only = flags & MS_RDONLY and not flags & MS_REMOUNT
    return bool(read_only) and (plan["type"] == "tmpfs" or plan["target"] == "/dev")


def _flags(plan: dict[str, object]) -> int:
    flags: Any = plan["flags"]
    return int(flags)


def is_guest_shm(mount: Mount, config: Config) -> bool:
    """Whether *mount* is an engine's /dev/shm on the host, to be one of the guest instead.

    Engines mount a tmpfs on the host (…/shm) and bind it, so that containers can share it, or the
    host's own when no ipc namespace is asked for. Shared memory is memory of the guest's kernel:
    over the share it would be slow, and shared with nobody. What a user binds by hand
    (``-v /dev/shm:/dev/shm``) is left as it is.
    """
    if os.path.normpath(mount.destination) != "/dev/shm" or not is_bind(mount):
        return False
    if not os.path.ismount(mount.source):
        return False
    own_ipc = any(namespace.type == "ipc" for namespace in config.linux.namespaces)
    engines = os.path.basename(mount.source) == "shm" and mount.source not in HOST_SHM
    return engines or not own_ipc


def shm_data(size: int) -> str:
    """Mount options of a tmpfs for shared memory of *size* bytes; 0: without a limit."""
    return f"mode=1777,size={size}" if size else "mode=1777"


def _guest_shm(mount: Mount, shm: Shm, layout: Layout) -> dict[str, object]:
    """A tmpfs of the size of the one on the host, or the one that others have as well."""
    options = parse_options(mount.options)
    flags = bind_flags(options.flags, shm.flags, is_locked=False)
    if folder := layout.shm(shm):
        plan = _mount(mount, folder, "bind", options)
        return plan | {"flags": flags | MS_BIND, "data": ""}
    plan = _mount(mount, "shm", "tmpfs", options)
    return plan | {"flags": flags & ~(MS_BIND | MS_REC), "data": shm_data(shm.size)}


def _bind(mount: Mount, bind: Bind, layout: Layout, *, is_locked: bool) -> dict[str, object]:
    """The bind, and what must have other flags below it: in the guest it is all one mount."""
    options = parse_options(mount.options)
    flags = bind_flags(options.flags, bind.flags, is_locked=is_locked) | MS_BIND
    if mount.type == "rbind" or bind.overlay:
        flags |= MS_REC
    plan = _mount(mount, layout.volume(bind.index), "bind", options)
    plan |= {"flags": flags, "data": "", "kind": "dir" if bind.is_dir else "file"}
    if below := uncovered(bind.below, flags):
        plan["below"] = [[each.path, each.flags] for each in below]
    return plan


def _filesystem(mount: Mount, layout: Layout) -> dict[str, object]:
    options = parse_options(mount.options)
    if mount.type in CGROUP_TYPES:
        # The guest has cgroup v2 only; options of v1 (controllers, name=) mean nothing to it.
        return _mount(mount, "cgroup", "cgroup2", options) | {"data": ""}
    disk = layout.disks.get(source_number(mount.source) or (0, 0)) if layout.disks else None
    if disk is not None:
        return _mount(mount, f"/dev/disk/{disk}", mount.type, options)
    # runc too leaves it to the kernel to know the type.
    return _mount(mount, mount.source or mount.type, mount.type, options)


def _mount(mount: Mount, source: str, kind: str, options: MountOptions) -> dict[str, object]:
    plan: dict[str, object] = {
        "source": source,
        "target": os.path.normpath("/" + mount.destination.lstrip("/")),
        "type": kind,
        "flags": options.flags,
        "data": options.data,
        "propagation": options.propagation,
        "kind": "dir",
        "tmpcopyup": options.tmpcopyup,
    }
    if options.attributes_set or options.attributes_clear:
        plan["recursive_attr"] = [options.attributes_set, options.attributes_clear]
    return plan
