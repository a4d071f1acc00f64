"""`state`, `list`, `ps`: what is known of containers."""

from __future__ import annotations

import os

from cloche.base import fastjson
from cloche.base.errors import ConfigError
from cloche.cli.flags import BOOL, TEXT, Flag, Verb
from cloche.model.state import list_states, load_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from cloche.cli.main import Context

STATE = Verb("state ID", "Print the state of a container as JSON.")
LIST = Verb(
    "list [flags]",
    "List the containers of this root folder.",
    (Flag("format f", TEXT, "table or json"), Flag("quiet q", BOOL, "ids only")),
)
PS = Verb(
    "ps [flags] ID",
    "List the processes in a container, as the guest sees them.\n\n"
    "The table has the guest's own process ids. The JSON is a list of ids of the host, as engines\n"
    "expect it: of stand-ins that look like the guest's processes, and end after 3 seconds.",
    (Flag("format f", TEXT, "table or json"),),
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
    if _format(flags.text("format", "table")) == "json":
        print(fastjson.dumps(shown or None))
        return 0
    columns = ("id", "pid", "status", "bundle", "created", "owner")
    rows = [tuple(str(found[column]) for column in columns) for found in shown]
    _print_table([tuple(column.upper() for column in columns), *rows], least=12)
    return 0


def processes(context: Context, args: list[str]) -> int:
    """`cloche ps`."""
    flags = PS.parse(args)
    if not flags.arguments:
        raise ConfigError("ps: a container's id is expected", hint=f"cloche {PS.usage}")
    if len(flags.arguments) > 1:
        # runc hands them to the host's ps, which does not know the guest's processes.
        given = " ".join(flags.arguments[1:])
        why = "flags come before the id; options of ps(1) are not possible"
        raise ConfigError(f"ps: {given}: not expected after the id", hint=why)
    from cloche.heart.client import ask

    state = load_state(context.root, flags.arguments[0])
    found = ask(state, "ps") if state.is_alive() else []
    if _format(flags.text("format", "table")) == "json":
        print(fastjson.dumps(_on_the_host(found) or None))
        return 0
    rows = [("UID", "PID", "PPID", "TIME", "CMD")]
    for process in found:
        seconds = int(process["cpu_ns"]) // 1_000_000_000
        time = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        rows.append(
            (
                str(process["uid"]),
                str(process["pid"]),
                str(process["ppid"]),
                time,
                process["command"],
            )
        )
    _print_table(rows)
    return 0


def _on_the_host(found: Sequence[dict[str, Any]]) -> list[int]:
    """Pids of the host that an engine may show: a guest's would name foreign processes there."""
    from cloche.engine.top import stand_in

    return stand_in((int(process["uid"]), str(process["command"])) for process in found)


def _format(name: str) -> str:
    if name not in ("table", "json"):
        raise ConfigError(f"--format {name!r}: unknown", hint="use table or json")
    return name


def _owner(path: str) -> str:
    uid = os.stat(path).st_uid
    return "root" if uid == 0 else str(uid)


def _print_table(rows: Sequence[tuple[str, ...]], *, least: int = 0) -> None:
    """Columns three spaces apart and at least *least* wide, as runc's; the last is not padded."""
    widths = [max(least, *(len(row[column]) + 3 for row in rows)) for column in range(len(rows[0]))]
    for *cells, last in rows:
        print(
            *(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)), last, sep=""
        )
