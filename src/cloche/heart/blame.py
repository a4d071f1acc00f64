"""Which field of config.json the guest could not carry out, so that its error names it.

The agent knows nothing of config.json: its errors say at which step, and on what, it failed
(docs/protocol.md, REPLY). What stands there was made of the config by cloche.model.plan.
"""

from __future__ import annotations

from cloche.base.errors import GuestError
from cloche.model.cgroup import RESOURCES, field_of
from cloche.model.mounts import parse_options
from cloche.model.plan_mounts import planned_mounts
from cloche.model.problems import quoted
from cloche.model.rlimits import RLIMITS
from cloche.model.validate import sysctl_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.model.oci import Config, Process
    from cloche.model.oci_linux import Linux, Resources
    from cloche.wire.messages import AgentError

ENODEV, EINVAL = 19, 22

# What the step "set" is done to, and fields of the process.
_SET = {
    "scheduler": "scheduler",
    "I/O priority": "ioPriority",
    "CPU affinity": "execCPUAffinity",
    "no_new_privs": "noNewPrivileges",
}
_OF_PROCESS = {
    "user": "user",
    "capabilities": "capabilities",
    "oom_score_adj": "oomScoreAdj",
    "chdir": "cwd",
}
_OF_CONFIG = {
    "sethostname": "$.hostname",
    "setdomainname": "$.domainname",
    "seccomp": "$.linux.seccomp",
    "set propagation": "$.linux.rootfsPropagation",
    "set time offsets": "$.linux.timeOffsets",
    "map": "$.linux.uidMappings",
}


def explained(error: AgentError, config: Config) -> GuestError:
    """*error*, of creating or starting the container *config*, with the field in front."""
    found = (
        _of_resources(error, config.linux.resources, RESOURCES)
        or _of_process(error, config.process, "$.process")
        or _of_mounts(error, config)
        or _of_linux(error, config.linux)
        or _OF_CONFIG.get(error.step, "")
    )
    return _told(error, found)


def explained_exec(error: AgentError, process: Process) -> GuestError:
    """As explained, of an exec of *process*."""
    return _told(error, _of_process(error, process, "$"))


def explained_update(error: AgentError, resources: Resources, path: str) -> GuestError:
    """As explained, of limits *resources* at JSON *path*."""
    return _told(error, _of_resources(error, resources, path))


def _told(error: AgentError, field: str) -> GuestError:
    return GuestError(f"{field}: {error.message}", hint=error.hint) if field else error


def _of_resources(error: AgentError, resources: Resources, path: str) -> str:
    field = field_of(error.object, resources) if error.step == "cgroup" else ""
    return f"{path}.{field}" if field else ""


def _of_process(error: AgentError, process: Process, path: str) -> str:
    if error.step == "rlimit":
        numbers = [str(RLIMITS[limit.type]) for limit in process.rlimits]
        # Those that an exec does not name are the container's.
        return f"{path}.rlimits{_place(numbers, error.object)}"
    if error.step == "mkdir" and error.object == process.cwd:
        return f"{path}.cwd"
    is_set = error.step == "set"
    field = _SET.get(error.object, "") if is_set else _OF_PROCESS.get(error.step, "")
    return f"{path}.{field}" if field else ""


def _of_mounts(error: AgentError, config: Config) -> str:
    """The agent says which mount by its place in the plan."""
    name, _, number = error.object.rstrip("]").partition("[")
    is_number = (
        number.isascii() and number.isdigit() and len(number) < 6
    )  # the guest is not trusted
    places = [index for index, _ in planned_mounts(config)]
    if name != "mounts" or not is_number or int(number) >= len(places):
        return ""
    place = places[int(number)]
    mount, path = config.mounts[place], f"$.mounts[{place}]"
    if error.step == "mount target":
        return f"{path}.destination"
    if error.errno == ENODEV:
        return f"{path}.type"
    if error.errno == EINVAL and parse_options(mount.options).data:
        return f"{path}.options"
    return path


def _of_linux(error: AgentError, linux: Linux) -> str:
    if error.step == "set" and error.object == "memory policy":
        return "$.linux.memoryPolicy"
    if error.step == "set" and error.object == "personality":
        return "$.linux.personality"
    if error.step == "sysctl":
        names = [name for name in linux.sysctl if sysctl_path(name) == error.object]
        return f"$.linux.sysctl[{quoted(names[0])}]" if names else "$.linux.sysctl"
    if error.step == "mask":
        return f"$.linux.maskedPaths{_place(linux.masked_paths, error.object)}"
    if error.step == "make read-only" and error.object != "/":
        return f"$.linux.readonlyPaths{_place(linux.readonly_paths, error.object)}"
    if error.step in ("mknod", "bind", "mkdir"):
        paths = [device.path for device in linux.devices]
        if error.step == "mkdir":  # of the folder that it is in
            paths = [path.rpartition("/")[0] for path in paths]
            if error.object not in paths:
                return ""
        return f"$.linux.devices{_place(paths, error.object)}"
    return ""


def _place(items: list[str] | tuple[str, ...], item: str) -> str:
    return f"[{items.index(item)}]" if item in items else ""
