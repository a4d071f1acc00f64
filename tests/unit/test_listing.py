"""Lists of processes as a guest may tell them."""

from __future__ import annotations

from math import inf
from typing import Any

import msgspec
import pytest

from cloche.base.errors import GuestError
from cloche.heart.listing import shown
from cloche.wire import frames
from cloche.wire.messages import Protocol, Reply

ENTRY: dict[str, Any] = {
    **{"pid": 81, "ppid": 1, "uid": 0, "gid": 0, "nspid": 7, "start_ns": 5, "cpu_ns": 6},
    **{"stat": ["S", 81, 81, 34816, -1, 0, 1, 4096, 2], "command": "sh -c \x1b[31m\u202e"},
}


def listed(answer: object) -> list[dict[str, Any]]:
    """What is shown of a guest's *answer*."""
    protocol = Protocol()
    number, _ = protocol.request("processes", {"id": "box"})
    payload = msgspec.msgpack.encode([number, {"ok": answer}])
    (reply,) = protocol.receive(frames.encode(0, frames.REPLY, payload))
    assert isinstance(reply, Reply)
    return shown(reply.value)


def test_a_list() -> None:
    (process,) = listed([ENTRY])
    assert process["command"] == r"sh -c \x1b[31m\u202e"
    assert (process["state"], process["tty"], process["tpgid"], process["rss"]) == (
        "S",
        34816,
        -1,
        2,
    )
    assert "stat" not in process
    assert listed([]) == []


@pytest.mark.parametrize("value", [inf, -(1 << 63), 1 << 63, (1 << 64) - 1, "1", None, [], b"1"])
@pytest.mark.parametrize("name", [*ENTRY, *range(9)])
def test_what_cannot_be_is_refused(name: str | int, value: object) -> None:
    entry: Any = {**ENTRY, "stat": [*ENTRY["stat"]]}
    (entry if isinstance(name, str) else entry["stat"])[name] = value
    if name == "command" and value == "1":
        return
    with pytest.raises(GuestError, match="malformed message: reply to processes: "):
        listed([entry])


@pytest.mark.parametrize(
    "stat",
    [
        ENTRY["stat"][:-1],
        [*ENTRY["stat"], 1],
        *([letter, *ENTRY["stat"][1:]] for letter in ("SS", "", "1", "é", "\n")),
    ],
)
def test_stats_of_another_kind_are_refused(stat: list[object]) -> None:
    with pytest.raises(GuestError):
        listed([{**ENTRY, "stat": stat}])


@pytest.mark.parametrize("answer", [None, {}, [None], [{}], [[]], "x"])
def test_other_answers_are_refused(answer: object) -> None:
    with pytest.raises(GuestError):
        listed(answer)
