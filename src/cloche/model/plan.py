"""config.json compiled to the flat plan that the agent carries out (docs/protocol.md, Types).

All policy is here and in the modules it calls; the plan holds plain values only.
"""

from __future__ import annotations

from cloche.base import fastjson
from cloche.base.syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
)
from cloche.model.capabilities import mask
from cloche.model.cgroup import Limits, cgroup_values, limits
from cloche.model.cgroup_mounts import shows_cgroups
from cloche.model.device_filter import device_filter
from cloche.model.devices import DEFAULT_LINKS, device_plan
from cloche.model.environment import hook_environment, process_environment
from cloche.model.mounts import MS_REC, MS_SLAVE, PROPAGATION
from cloche.model.plan_mounts import (
    Bind,
    Layout,
    Sources,
    bind_warnings,
    host_binds,
    host_sources,
    mount_plan,
)
from cloche.model.rlimits import rlimit_plan
from cloche.model.scheduling import tuning
from cloche.model.seccomp import Filter, compile_seccomp
from cloche.model.users import cgroup_owner, mapped_devices, namespace_plan, stdio_owner
from cloche.model.validate import config_warnings, process_warnings, sysctl_path
from cloche.model.validate_mounts import is_bind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from os import PathLike

    from cloche.base.limits import Rlimits
    from cloche.model.oci import Capabilities, Config, Hook, Process

__all__ = [
    "Bind",
    "Layout",
    "Limits",
    "compile_container",
    "compile_process",
    "host_binds",
    "host_sources",
    "limits",
]

DEFAULT_UMASK = 0o022  # runc's

# A network namespace is made or joined on the host; the guest's network is the container's, and
# moves into a user namespace with it.
NAMESPACE_FLAGS = {
    "cgroup": CLONE_NEWCGROUP,
    "ipc": CLONE_NEWIPC,
    "mount": CLONE_NEWNS,
    "network": 0,
    "pid": CLONE_NEWPID,
    "time": CLONE_NEWTIME,
    # One without a network of its own would have no power over any.
    "user": CLONE_NEWUSER | CLONE_NEWNET,
    "uts": CLONE_NEWUTS,
}


def compile_container(
    config: Config,
    *,
    bundle: str,
    container_id: str,
    layout: Layout,
    cgroup: str,
    streams: tuple[int, int, int],
    terminal_size: tuple[int, int] | None,
    seccomp_cache: str | PathLike[str] | None,
    sources: Sources | None = None,
    limits: Rlimits = (),
) -> tuple[dict[str, object], list[str]]:
    """The ``create`` request for a checked *config*, and warnings for what it leaves out.

    *cgroup* is relative to the guest's /sys/fs/cgroup; *streams* are stdin, stdout and stderr (0:
    none); *terminal_size* is (rows, columns), None: as consoleSize says; *sources*, if they are not
    to be looked for here, are those of its mounts; *limits* are the caller's resource limits, soft
    and hard, in the kernel's order. ConfigError, JSON path first, when a bind mount's source is
    missing or the seccomp profile cannot be compiled.
    """
    linux = config.linux
    seccomp = compile_seccomp(linux.seccomp, seccomp_cache) if linux.seccomp else None
    found = sources or host_sources(config, bundle)
    devices, device_notes = _devices(config, layout)
    plan: dict[str, object] = {
        "id": container_id,
        "root": layout.rootfs,
        "read_only": config.root.readonly,
        "mounts": mount_plan(config, found, layout),
        "namespaces": _namespaces(config),
        "join": [],
        "hostname": config.hostname or None,
        "domainname": config.domainname or None,
        "cgroup": cgroup,
        "cgroup_values": [list(pair) for pair in cgroup_values(linux.resources)],
        "device_filter": device_filter(linux.resources.devices, has_disks=bool(layout.disks)),
        "sysctls": [[sysctl_path(name), value] for name, value in linux.sysctl.items()],
        "devices": devices,
        "links": [] if _own_dev(config) else [list(pair) for pair in DEFAULT_LINKS],
        "masked_paths": list(linux.masked_paths),
        "read_only_paths": list(linux.readonly_paths),
        "propagation": PROPAGATION.get(linux.rootfs_propagation, MS_SLAVE | MS_REC),
        "process": _process(config.process, config, seccomp, streams, terminal_size)
        | {"rlimits": rlimit_plan(config.process.rlimits, limits)},
        "start_hooks": _start_hooks(config, container_id, bundle),
        **namespace_plan(config),
        **cgroup_owner(config),
    }
    if found.root_flags:
        plan["root_flags"] = found.root_flags
    seccomp_notes = list(seccomp.warnings) if seccomp else []
    notes = bind_warnings(found.binds) + device_notes + seccomp_notes
    return plan, config_warnings(config) + notes


def compile_process(
    process: Process,
    config: Config,
    *,
    streams: tuple[int, int, int],
    terminal_size: tuple[int, int] | None,
    seccomp_cache: str | PathLike[str] | None,
    limits: Rlimits = (),
) -> tuple[dict[str, object], list[str]]:
    """*process* of an exec in the container *config*, as the agent's type Process, and warnings.

    What an exec's process leaves open is as for the container's first one, as with runc:
    capabilities, rlimits, umask, oom_score_adj and the seccomp profile. Arguments and errors as of
    compile_container.
    """
    profile = config.linux.seccomp
    seccomp = compile_seccomp(profile, seccomp_cache) if profile else None
    plan = _process(process, config, seccomp, streams, terminal_size)
    plan |= {"rlimits": rlimit_plan(process.rlimits or config.process.rlimits, limits)}
    return plan, process_warnings(process, "$") + list(seccomp.warnings if seccomp else ())


def _process(
    process: Process,
    config: Config,
    seccomp: Filter | None,
    streams: tuple[int, int, int],
    terminal_size: tuple[int, int] | None,
) -> dict[str, object]:
    first = config.process
    rows, columns = _terminal_size(process, terminal_size)
    user = process.user
    stdin, stdout, stderr = streams
    plan: dict[str, object] = {
        "args": list(process.args),
        "env": process_environment(process.env),
        "cwd": process.cwd,
        "uid": user.uid,
        "gid": user.gid,
        "groups": list(dict.fromkeys(user.additional_gids)),
        "umask": _first_given(user.umask, first.user.umask, DEFAULT_UMASK),
        **_capabilities(process.capabilities or first.capabilities),
        "no_new_privs": process.no_new_privileges,
        "seccomp": seccomp.program if seccomp else None,
        "seccomp_flags": seccomp.flags if seccomp else 0,
        "oom_score_adj": _first_given(process.oom_score_adj, first.oom_score_adj),
        "terminal": process.terminal,
        "rows": rows,
        "columns": columns,
        "stdin": stdin,
        "stdout": stdout,
        "stderr": stderr,
    }
    is_exec = process is not first
    tuned = tuning(process, first, config.linux, is_exec=is_exec)
    plan |= {"tuning": tuned} if tuned else {}
    return plan | stdio_owner(process, config.linux, "$" if is_exec else "$.process")


def _first_given(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _namespaces(config: Config) -> int:
    # Without a mount namespace of its own the container would change the agent's mounts.
    flags = CLONE_NEWNS
    for namespace in config.linux.namespaces:
        if not namespace.path:  # else it is joined: cloche.heart.member
            flags |= NAMESPACE_FLAGS[namespace.type]
    # A cgroup mount shows the tree from the namespace's root; runc hands out the container's
    # part of it too, namespace or not.
    if any(shows_cgroups(mount) for mount in config.mounts):
        flags |= CLONE_NEWCGROUP
    return flags


def _own_dev(config: Config) -> bool:
    """Whether the container brings a /dev of its own: then nothing is made in it, as with runc."""
    return any(
        is_bind(mount) and mount.destination.rstrip("/") == "/dev" for mount in config.mounts
    )


def _devices(config: Config, layout: Layout) -> tuple[list[dict[str, object]], list[str]]:
    if _own_dev(config):
        return [], []
    devices, notes = device_plan(config.linux.devices, layout.disks)
    return mapped_devices(devices, config.linux), notes


def _capabilities(sets: Capabilities | None) -> dict[str, object]:
    """Masks by set; a process whose config names none has none, as with runc."""
    masks = {
        name: mask(getattr(sets, name))[0] if sets else 0
        for name in ("bounding", "effective", "inheritable", "permitted", "ambient")
    }
    # The kernel raises no others (capabilities(7)); runc does not fail over them either.
    masks["ambient"] &= masks["permitted"] & masks["inheritable"]
    return {**masks}


def _terminal_size(process: Process, given: tuple[int, int] | None) -> tuple[int, int]:
    if given is not None:
        return given
    box = process.console_size
    return (box.height, box.width) if box else (0, 0)


def _start_hooks(config: Config, container_id: str, bundle: str) -> list[dict[str, object]]:
    hooks = config.hooks.start_container
    if not hooks:
        return []
    state: dict[str, object] = {
        "ociVersion": config.oci_version,
        "id": container_id,
        "status": "created",
        # As seen where the hook runs: the first process of the container's pid namespace.
        "pid": 1,
        "bundle": bundle,
        "annotations": config.annotations,
    }
    stdin = fastjson.compact(state).encode()
    return [_start_hook(hook, stdin) for hook in hooks]


def _start_hook(hook: Hook, stdin: bytes) -> dict[str, object]:
    return {
        "path": hook.path,
        "args": list(hook.args or (hook.path,)),
        "env": None if hook.env is None else hook_environment(hook.env),
        "timeout": hook.timeout,
        "stdin": stdin,
    }
