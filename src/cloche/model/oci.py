"""config.json as types (OCI runtime specification 1.2, config.md), and how it is read.

Unknown fields are ignored, as the specification asks; known ones are read strictly, and what
they say is checked by cloche.model.validate before anyone sees them. ``null`` means absent, as
it does for runc.
"""

# Annotations are objects here: msgspec would take 2 ms of each start to compile strings.

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from cloche.base.errors import ConfigError
from cloche.model import validate
from cloche.model.oci_linux import I64, U32, U64, IDMapping, Linux, Resources
from cloche.model.oci_vm import VM
from cloche.model.problems import quoted, refuse


class Root(Struct, frozen=True):
    """The container's root file system on the host."""

    path: str
    readonly: bool = False


class Mount(Struct, frozen=True, rename="camel"):
    """One mount below the root, in the order of mounting."""

    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()
    uid_mappings: tuple[IDMapping, ...] = ()
    gid_mappings: tuple[IDMapping, ...] = ()


class Box(Struct, frozen=True):
    """Size of a terminal in characters."""

    height: Annotated[int, Meta(ge=0, le=0xFFFF)]
    width: Annotated[int, Meta(ge=0, le=0xFFFF)]


class User(Struct, frozen=True, rename="camel"):
    """Who the process runs as."""

    uid: U32 = 0
    gid: U32 = 0
    umask: U32 | None = None
    additional_gids: tuple[U32, ...] = ()
    username: str = ""


class Capabilities(Struct, frozen=True):
    """Names of capabilities, ``CAP_KILL`` style, per set."""

    bounding: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


class Rlimit(Struct, frozen=True):
    """One resource limit; 2**64 - 1 is unlimited."""

    type: str
    hard: U64
    soft: U64


class Scheduler(Struct, frozen=True):
    """sched_setattr(2) of the process."""

    policy: str
    nice: I64 = 0
    priority: I64 = 0
    flags: tuple[str, ...] = ()
    runtime: U64 = 0
    deadline: U64 = 0
    period: U64 = 0


class IOPriority(Struct, frozen=True):
    """ioprio_set(2) of the process."""

    class_: str = field(name="class")
    priority: I64 = 0


class ExecCPUAffinity(Struct, frozen=True):
    """CPUs of a process started by exec, before and after it is in its cgroup."""

    initial: str = ""
    final: str = ""


class Process(Struct, frozen=True, rename="camel"):
    """A process of the container: the first one, or one started by exec."""

    cwd: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: User = field(default_factory=User)
    terminal: bool = False
    console_size: Box | None = None
    command_line: str = ""
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    apparmor_profile: str = ""
    selinux_label: str = ""
    oom_score_adj: Annotated[int, Meta(ge=-1000, le=1000)] | None = None
    scheduler: Scheduler | None = None
    io_priority: IOPriority | None = None
    exec_cpu_affinity: ExecCPUAffinity | None = field(default=None, name="execCPUAffinity")


class Hook(Struct, frozen=True):
    """A program to be run at one moment in the container's life; the time-out is in seconds."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] | None = None
    timeout: I64 | None = None


class Hooks(Struct, frozen=True, rename="camel"):
    """Hooks by moment."""

    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


class Config(Struct, frozen=True, rename="camel"):
    """All of config.json."""

    oci_version: str
    root: Root
    process: Process
    mounts: tuple[Mount, ...] = ()
    hostname: str = ""
    domainname: str = ""
    hooks: Hooks = field(default_factory=Hooks)
    annotations: dict[str, str] = {}
    linux: Linux = field(default_factory=Linux)
    vm: VM | None = None
    windows: dict[str, object] | None = None
    solaris: dict[str, object] | None = None
    zos: dict[str, object] | None = None


T = TypeVar("T", Config, Process, Resources)


def load_config(path: str) -> Config:
    """config.json at *path*, parsed and checked.

    ConfigError, in one line with file, JSON path and what was expected, when it cannot be read,
    is not JSON, breaks the specification or asks for what cloche refuses.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        # Word for word runc's: engines and their tests look for it.
        raise ConfigError(f"JSON specification file {path} not found") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        config = _convert(data, Config)
        validate.check_config(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from None
    return config


def load_process(data: bytes, name: str) -> Process:
    """The process section alone, as ``exec --process`` takes it; *name* is that file's, for errors.

    ConfigError as of load_config.
    """
    try:
        process = _convert(data, Process)
        validate.check_process(process, "$")
        validate.check_args(process, "$")
    except ConfigError as error:
        raise ConfigError(f"{name}: {error.message}", hint=error.hint) from None
    return process


def load_resources(data: bytes) -> Resources:
    """linux.resources alone, as ``update`` takes it; ConfigError, `$` being its root."""
    return _convert(data, Resources)


def _convert(data: bytes, kind: type[T]) -> T:
    try:
        raw = msgspec.json.decode(data)
        return msgspec.convert(_clean(raw, "$"), kind)
    except msgspec.ValidationError as error:
        raise ConfigError(_reworded(str(error))) from None
    except RecursionError:
        refuse("$", "not usable JSON: nested too deeply")
    except ValueError as error:  # msgspec.DecodeError and UnicodeDecodeError are both ValueErrors
        refuse("$", f"not valid JSON: {error}")


def _clean(value: object, path: str) -> object:
    """*value* without nulls in objects; ConfigError for what no field can carry to the guest."""
    if isinstance(value, dict):
        return {
            _clean(key, path): _clean(item, path + _step(key))
            for key, item in value.items()
            if item is not None
        }
    if isinstance(value, list):
        return [_clean(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, str) and "\0" in value:
        refuse(path, "contains a NUL byte, which no path, name or argument can hold")
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        refuse(path, "number out of range: expected at most 64 bits")
    return value


def _step(key: str) -> str:
    return f".{key}" if key.isidentifier() else f"[{quoted(key)}]"


def _reworded(message: str) -> str:
    """msgspec's message (``Expected … - at `$.a```) with the path first and without quotes."""
    what, at, path = message.rpartition(" - at `")
    if not at:
        what, path = message, "$"
    path = path.removesuffix("`")
    missing = what.removeprefix("Object missing required field ")
    if missing != what:
        return f"{path}.{missing.strip('`')}: missing, but required"
    return f"{path}: {what[:1].lower()}{what[1:].replace('`', '')}"
