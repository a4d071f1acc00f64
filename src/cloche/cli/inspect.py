"""`state`, `list`: what is known of containers."""

from __future__ import annotations

import os

from cloche.base import fastjson
from cloche.base.errors import ConfigError
from cloche.base.text import printable
from cloche.cli.flags import BOOL, TEXT, Flag, Verb
from cloche.model.state import list_states, load_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloche.cli.main import Context

STATE = Verb("state ID", "Print the state of a container as JSON.")
LIST = Verb(
    "list [flags]",
    "List the containers of this root folder.",
    (Flag("format f", TEXT, "table or json"), Flag("quiet q", BOOL, "ids only")),
)


def state(context: Context, args: list[str]) -> int:
    """`cloche state`."""
    _, container_id = STATE.one_id(args)
    print(fastjson.pretty(load_state(context.root, container_id).runc()))
    return 0


def list_containers(context: Context, args: list[str]) -> int:
    """`cloche list`."""
    flags = LIST.parse(args)
    states = list_states(context.root, lambda error: context.log.error(str(error)))
    if flags.on("quiet"):
        for found in states:
            print(found.id)
        return 0
    shown = [{**found.runc(), "owner": _owner(found.directory)} for found in states]
    if known_format(flags.text("format", "table")) == "json":
        print(fastjson.dumps(shown or None))
        return 0
    columns = ("id", "pid", "status", "bundle", "created", "owner")
    rows = [tuple(str(found[column]) for column in columns) for found in shown]
    _print_table([tuple(column.upper() for column in columns), *rows], least=12)
    return 0


def known_format(name: str) -> str:
    """The --format *name*, if it is one."""
    if name not in ("table", "json"):
        raise ConfigError(f"--format {name!r}: unknown", hint="use table or json")
    return name


def _owner(path: str) -> str:
    uid = os.stat(path).st_uid
    return "root" if uid == 0 else str(uid)


def _print_table(rows: Sequence[tuple[str, ...]], *, least: int = 0) -> None:
    """Columns three spaces apart and at least *least* wide, as runc's; the last is not padded."""
    widths = [max(least, *(len(row[column]) + 3 for row in rows)) for column in range(len(rows[0]))]
    for *cells, last in ([printable(cell) for cell in row] for row in rows):
        print(
            *(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)), last, sep=""
        )
