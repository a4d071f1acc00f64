"""config.json as types (OCI runtime specification 1.3, config.md), and how it is read.

Unknown fields are ignored, as the specification asks; known ones are read strictly, and what
they say is checked by cloche.model.validate before anyone sees them. ``null`` means absent, as
it does for runc.
"""

# Annotations are objects here: base.typed looks at them.

from cloche.base.errors import ConfigError
from cloche.base.kinds import Int
from cloche.base.typed import Struct, field, replace
from cloche.model import validate
from cloche.model.oci_linux import I64, U32, U64, IDMapping, Linux, Resources
from cloche.model.oci_vm import VM
from cloche.model.texts import Argument, FreeText, PageText, PathText, from_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    Length = int
    OomScore = int
else:
    Length = Int(0, 0xFFFF)
    OomScore = Int(-1000, 1000)


class Root(Struct):
    """The container's root file system on the host."""

    path: PathText
    readonly: bool = False


class Mount(Struct, rename="camel"):
    """One mount below the root, in the order of mounting."""

    destination: PathText
    type: PageText = ""
    source: PageText = ""
    options: tuple[PageText, ...] = ()
    uid_mappings: tuple[IDMapping, ...] = ()
    gid_mappings: tuple[IDMapping, ...] = ()


class Box(Struct):
    """Size of a terminal in characters."""

    height: Length
    width: Length


class User(Struct, rename="camel"):
    """Who the process runs as."""

    uid: U32 = 0
    gid: U32 = 0
    umask: U32 | None = None
    additional_gids: tuple[U32, ...] = ()
    username: FreeText = ""


class Capabilities(Struct):
    """Names of capabilities, ``CAP_KILL`` style, per set."""

    bounding: tuple[FreeText, ...] = ()
    effective: tuple[FreeText, ...] = ()
    inheritable: tuple[FreeText, ...] = ()
    permitted: tuple[FreeText, ...] = ()
    ambient: tuple[FreeText, ...] = ()


class Rlimit(Struct):
    """One resource limit; 2**64 - 1 is unlimited."""

    type: FreeText
    hard: U64
    soft: U64


class Scheduler(Struct):
    """sched_setattr(2) of the process."""

    policy: FreeText
    nice: I64 = 0
    priority: I64 = 0
    flags: tuple[FreeText, ...] = ()
    runtime: U64 = 0
    deadline: U64 = 0
    period: U64 = 0


class IOPriority(Struct):
    """ioprio_set(2) of the process."""

    class_: FreeText = field(name="class")
    priority: I64 = 0


class ExecCPUAffinity(Struct):
    """CPUs of a process started by exec, before and after it is in its cgroup."""

    initial: PageText = ""
    final: PageText = ""


class Process(Struct, rename="camel"):
    """A process of the container: the first one, or one started by exec."""

    cwd: PathText
    args: tuple[Argument, ...] = ()
    env: tuple[Argument, ...] = ()
    user: User = User()
    terminal: bool = False
    console_size: Box | None = None
    command_line: FreeText = ""
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    apparmor_profile: FreeText = ""
    selinux_label: FreeText = ""
    oom_score_adj: OomScore | None = None
    scheduler: Scheduler | None = None
    io_priority: IOPriority | None = None
    exec_cpu_affinity: ExecCPUAffinity | None = field(default=None, name="execCPUAffinity")


class Hook(Struct):
    """A program to be run at one moment in the container's life; the time-out is in seconds."""

    path: PathText
    args: tuple[Argument, ...] = ()
    env: tuple[Argument, ...] | None = None
    timeout: I64 | None = None


class Hooks(Struct, rename="camel"):
    """Hooks by moment."""

    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


class Config(Struct, rename="camel"):
    """All of config.json."""

    oci_version: FreeText
    root: Root
    process: Process
    mounts: tuple[Mount, ...] = ()
    hostname: FreeText = ""
    domainname: FreeText = ""
    hooks: Hooks = Hooks()
    annotations: dict[FreeText, FreeText] = field(default={})
    linux: Linux = Linux()
    vm: VM | None = None
    windows: dict[FreeText, object] | None = None
    solaris: dict[FreeText, object] | None = None
    zos: dict[FreeText, object] | None = None
    freebsd: dict[FreeText, object] | None = None


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
        config = _with_limits_as_meant(from_json(data, Config))
        validate.check_config(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from None
    return config


def load_process(data: bytes, name: str) -> Process:
    """The process section alone, as ``exec --process`` takes it; *name* is that file's, for errors.

    ConfigError as of load_config.
    """
    try:
        process: Process = from_json(data, Process)
        validate.check_process(process, "$")
        validate.check_args(process, "$")
    except ConfigError as error:
        raise ConfigError(f"{name}: {error.message}", hint=error.hint) from None
    return process


def load_resources(data: bytes) -> Resources:
    """linux.resources alone, as ``update`` takes it; ConfigError, `$` being its root."""
    found: Resources = from_json(data, Resources)
    return found


def _with_limits_as_meant(config: Config) -> Config:
    """Before version 1.3 a limit of 0 processes meant that there is none, as runc took it."""
    resources = config.linux.resources
    later = validate.version_of(config.oci_version) >= (1, 3)
    if later or resources.pids is None or resources.pids.limit != 0:
        return config
    resources = replace(resources, pids=None)
    linux = replace(config.linux, resources=resources)
    return replace(config, linux=linux)
