"""`update`: other limits for a running container."""

from __future__ import annotations

import sys

from cloche.base import fastjson
from cloche.base.errors import ConfigError, StateError
from cloche.base.files import read_text
from cloche.cli.flags import TEXT, Flag, Flags, Verb
from cloche.heart.client import ask
from cloche.model.state import load_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cloche.cli.main import Context

# flag: section and field of the OCI resources, help
_NUMBERS = {
    "blkio-weight": ("blockIO", "weight", "share of block I/O, 10 to 1000"),
    "cpu-period": ("cpu", "period", "µs in which the quota may be used"),
    "cpu-quota": ("cpu", "quota", "µs of processor time in a period; -1: unlimited"),
    "cpu-burst": ("cpu", "burst", "µs that may be saved up of earlier periods"),
    "cpu-share": ("cpu", "shares", "weight against other containers"),
    "cpu-rt-period": ("cpu", "realtimePeriod", "µs in which the realtime runtime may be used"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime", "µs of realtime scheduling in a period"),
    "cpu-idle": ("cpu", "idle", "1: runs when nothing else wants to"),
    "pids-limit": ("pids", "limit", "most processes and threads; -1: unlimited"),
}
_TEXTS = {
    "cpuset-cpus": ("cpu", "cpus", "processors of the host that the VM may use"),
    "cpuset-mems": ("cpu", "mems", "memory nodes of the host that the VM may use"),
}
_SIZES = {
    "memory": ("memory", "limit", "bytes, or a size like 512m; -1: unlimited"),
    "memory-reservation": ("memory", "reservation", "bytes that are reclaimed last"),
    "memory-swap": ("memory", "swap", "limit of memory and swap together; -1: unlimited"),
}
_OBSOLETE = ("kernel-memory", "kernel-memory-tcp")
_NOT_HERE = ("l3-cache-schema", "mem-bw-schema")

UPDATE = Verb(
    "update [flags] ID",
    "Change the limits of a container at once, up to the size of its VM.",
    (
        Flag(
            "resources r", TEXT, "file of OCI resources as JSON, - for stdin; other flags are idle"
        ),
        *(
            Flag(name, TEXT, text)
            for flags in (_NUMBERS, _TEXTS, _SIZES)
            for name, (_, _, text) in flags.items()
        ),
        *(Flag(name, TEXT, "not possible in a VM") for name in _NOT_HERE),
        *(Flag(name, TEXT, "obsolete, of no effect") for name in _OBSOLETE),
    ),
)


def update(context: Context, args: list[str]) -> int:
    """`cloche update`."""
    flags, container_id = UPDATE.one_id(args)
    for name in _NOT_HERE:
        if flags.text(name):
            raise ConfigError(f"--{name}: Intel RDT is not enabled")
    state = load_state(context.root, container_id)
    source = flags.text("resources")
    resources = _read(source) if source else _given(context, flags)
    if _is_empty(resources):
        return 0  # docker asks for just that whenever a restart policy changes
    if not state.is_alive():
        raise StateError("container not running")
    for warning in ask(state, "update", resources=resources):
        context.log.warning(warning)
    return 0


def _read(source: str) -> object:
    text = sys.stdin.buffer.read().decode(errors="replace") if source == "-" else read_text(source)
    if text is None:
        raise ConfigError(f"--resources: {source}: no such file")
    try:
        return fastjson.loads(text)
    except ValueError as error:
        raise ConfigError(f"--resources: {error}") from None


def _given(context: Context, flags: Flags) -> dict[str, Any]:
    """What the flags say, as OCI resources."""
    resources: dict[str, dict[str, Any]] = {}
    for defined, value_of in ((_NUMBERS, _number), (_TEXTS, _text), (_SIZES, _size)):
        for name, (section, field, _) in defined.items():
            if text := flags.text(name):
                resources.setdefault(section, {})[field] = value_of(name, text)
    for name in _OBSOLETE:
        if flags.text(name):
            context.log.warning(f"--{name}: not applied: the kernel has no such limit any longer")
    return resources


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--{name} {text!r}: a whole number is expected") from None


def _text(_: str, text: str) -> str:
    return text


def _size(name: str, text: str) -> int:
    if text == "-1":
        return -1
    from cloche.image.bundle import parse_size

    return parse_size(f"--{name}", text)


def _is_empty(value: object) -> bool:
    """Whether nothing is said in it: 0, "" and null stand for "as it is"."""
    if isinstance(value, dict):
        return all(key != "idle" and _is_empty(part) for key, part in value.items())
    return not value
