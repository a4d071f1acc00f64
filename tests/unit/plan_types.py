"""The agent's types of docs/protocol.md, strict: a plan that does not fit is the agent's error."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
I32 = Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)]
U64 = Annotated[int, Meta(ge=0)]


class Mount(Struct, forbid_unknown_fields=True):
    """Mount."""

    source: str
    target: str
    type: str
    flags: U32
    data: str
    propagation: U32
    kind: Literal["dir", "file", "none"]
    tmpcopyup: bool
    recursive_attr: tuple[U64, U64] | None = None
    read_only_last: bool = False
    below: list[tuple[str, U32]] = []


class Device(Struct, forbid_unknown_fields=True):
    """A device node."""

    path: str
    mode: U32
    major: U32
    minor: U32
    uid: U32
    gid: U32
    disk: str | None = None


class Hook(Struct, forbid_unknown_fields=True):
    """A hook run in the container."""

    path: str
    args: list[str]
    env: list[str] | None
    timeout: U32 | None
    stdin: bytes


class Tuning(Struct, forbid_unknown_fields=True):
    """How a process is scheduled."""

    sched_attr: Annotated[bytes, Meta(min_length=56, max_length=56)] | None = None
    io_priority: U32 | None = None
    affinity: bytes | None = None
    personality: U32 | None = None
    memory_policy: tuple[U32, bytes] | None = None


class Process(Struct, forbid_unknown_fields=True):
    """Process."""

    args: Annotated[list[str], Meta(min_length=1)]
    env: list[str]
    cwd: str
    uid: U32
    gid: U32
    groups: list[U32]
    umask: U32 | None
    bounding: U64
    effective: U64
    inheritable: U64
    permitted: U64
    ambient: U64
    rlimits: list[tuple[U32, U64, U64]]
    no_new_privs: bool
    seccomp: bytes | None
    seccomp_flags: U32
    oom_score_adj: I32 | None
    terminal: bool
    rows: U16
    columns: U16
    stdin: U32
    stdout: U32
    stderr: U32
    tuning: Tuning | None = None
    stdio_owner: U32 | None = None
    raw_newlines: bool = False


class Users(Struct, forbid_unknown_fields=True):
    """A user namespace."""

    uid_map: str
    gid_map: str


class Container(Struct, forbid_unknown_fields=True):
    """Container."""

    id: str
    root: str
    read_only: bool
    mounts: list[Mount]
    namespaces: U32
    join: list[tuple[str, U32]]
    hostname: str | None
    domainname: str | None
    cgroup: str
    cgroup_values: list[tuple[str, str]]
    device_filter: bytes | None
    sysctls: list[tuple[str, str]]
    devices: list[Device]
    links: list[tuple[str, str]]
    masked_paths: list[str]
    read_only_paths: list[str]
    propagation: U32
    process: Process
    start_hooks: list[Hook]
    users: Users | None = None
    time_offsets: str | None = None
    cgroup_owner: U32 | None = None
    root_flags: U32 | None = None
