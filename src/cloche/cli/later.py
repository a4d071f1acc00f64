"""`update`, `events`, `checkpoint`, `restore`: runc's verbs that cloche knows and cannot do yet."""

from __future__ import annotations

import sys

from cloche.base import fastjson
from cloche.base.errors import ClocheError, ConfigError
from cloche.cli.flags import Verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.cli.main import Context

# verb: what to do without it
INSTEAD = {
    "update": "make the container anew with the limits that it needs",
    "events": "the engine's own `stats` and `events` work",
    "checkpoint": "stop the container, its files stay as they are",
    "restore": "create the container anew from its bundle",
}


def update(context: Context, args: list[str]) -> int:
    """`cloche update`; that nothing changes is not an error.

    docker asks for just that, with a value of 0 for each limit, whenever a restart policy changes.
    """
    if args[:2] == ["--resources", "-"] and _is_empty(_resources()):
        return 0
    raise _not_yet("update", args)


def _resources() -> object:
    try:
        return fastjson.loads(sys.stdin.buffer.read())
    except ValueError as error:
        raise ConfigError(f"--resources: {error}") from None


def _is_empty(value: object) -> bool:
    """Whether nothing is said in it: 0, "" and null stand for "as it is"."""
    if isinstance(value, dict):
        return all(_is_empty(part) for part in value.values())
    return not value


def events(context: Context, args: list[str]) -> int:
    """`cloche events`."""
    raise _not_yet("events", args)


def checkpoint(context: Context, args: list[str]) -> int:
    """`cloche checkpoint`."""
    raise _not_yet("checkpoint", args)


def restore(context: Context, args: list[str]) -> int:
    """`cloche restore`."""
    raise _not_yet("restore", args)


def _not_yet(verb: str, args: list[str]) -> ClocheError:
    """The error that every use of *verb* ends with; `--help` prints as much and exits."""
    if "--help" in args or "-h" in args:
        Verb(f"{verb} [flags] ID", f"Not possible yet: {INSTEAD[verb]}.").parse(["--help"])
    # Whatever the flags are: engines pass those of runc.
    return ClocheError(f"{verb}: not possible yet", hint=INSTEAD[verb])
