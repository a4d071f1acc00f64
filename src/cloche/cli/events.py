"""`events`: what a container uses, and when it runs out of memory."""

from __future__ import annotations

import select
import sys
import time

from cloche.base import fastjson
from cloche.base.errors import ClocheError, ConfigError, StateError
from cloche.cli.flags import BOOL, TEXT, Flag, Verb
from cloche.heart.client import Client, ask
from cloche.model.state import State, load_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.cli.main import Context

EVENTS = Verb(
    "events [flags] ID",
    "Print a container's events, one JSON object a line, until it ends: what it uses, at every\n"
    "interval (`data`, as runc; `data.vm` is what its VM costs the host), and `oom`.",
    (
        Flag("interval", TEXT, "time between two stats events, such as 500ms (5s)"),
        Flag("stats", BOOL, "print one stats event and exit"),
    ),
)
# From the moment in which a VM answers no more to the end of its supervisor.
END_TIMEOUT_S = 10.0
# Go's time.ParseDuration, which runc's users write.
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def events(context: Context, args: list[str]) -> int:
    """`cloche events`."""
    flags, container_id = EVENTS.one_id(args)
    interval = parse_duration(flags.text("interval", "5s"))
    if interval <= 0:
        raise ConfigError("--interval: a duration above 0 is expected")
    state = load_state(context.root, container_id)
    if not state.is_alive():
        raise StateError(f"container with id {container_id} is not running")
    if flags.on("stats"):
        _print("stats", state, ask(state, "stats"))
        return 0
    _follow(state, interval)
    return 0


def _follow(state: State, interval: float) -> None:
    watch = Client(state)
    watch.request("watch")
    due = time.monotonic() + interval
    while True:
        remaining = due - time.monotonic()
        if _has_news(watch, max(0.0, remaining)):
            if not _tell_news(watch, state):
                return
        elif remaining <= 0:
            due += interval
            try:
                stats = ask(state, "stats")
            except (ClocheError, OSError):
                if not state.is_alive() or _ends(watch, state):
                    return  # the container's end was why, before we heard of it
                raise
            _print("stats", state, stats)


def _has_news(watch: Client, seconds: float) -> bool:
    poll = select.poll()
    poll.register(watch.fileno(), select.POLLIN)
    return watch.has_message() or bool(poll.poll(seconds * 1000))


def _tell_news(watch: Client, state: State) -> bool:
    """Print what has come; False when the container has ended."""
    if watch.receive() is None:
        return False
    _print("oom", state)
    return True


def _ends(watch: Client, state: State) -> bool:
    while _has_news(watch, END_TIMEOUT_S):
        if not _tell_news(watch, state):
            return True
    return False


def _print(kind: str, state: State, data: object = None) -> None:
    event: dict[str, object] = {"type": kind, "id": state.id}
    if data is not None:
        event["data"] = data
    sys.stdout.write(fastjson.dumps(event) + "\n")
    sys.stdout.flush()


def parse_duration(text: str) -> float:
    """Seconds of a duration as Go writes it ("5s", "1m30s", "1.5h"); ConfigError for others."""
    seconds, rest = 0.0, text
    while rest:
        number = rest[: len(rest) - len(rest.lstrip("0123456789."))]
        unit = rest[len(number) :]
        unit = unit[: len(unit) - len(unit.lstrip("nuµmsh"))]
        try:
            seconds += float(number) * _UNITS[unit]
        except (ValueError, KeyError):
            break
        rest = rest[len(number) + len(unit) :]
    if rest or not text:
        raise ConfigError(f"--interval {text!r}: not a duration", hint="such as 5s or 500ms")
    return seconds
