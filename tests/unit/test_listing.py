"""Lists of processes as a guest may tell them."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from cloche.base.errors import GuestError
from cloche.heart.listing import checked

ENTRY: dict[str, Any] = {
    **{"pid": 81, "ppid": 1, "uid": 0, "gid": 0, "nspid": 7, "start_ns": 5, "cpu_ns": 6},
    **{"stat": ["S", 81, 81, 34816, -1, 0, 1, 4096, 2], "command": "sh -c \x1b[31m\u202e"},
}


def test_a_list() -> None:
    (process,) = checked([ENTRY])
    assert process["command"] == r"sh -c \x1b[31m\u202e"
    assert (process["state"], process["tty"], process["tpgid"], process["rss"]) == (
        "S",
        34816,
        -1,
        2,
    )
    assert checked([]) == []


@pytest.mark.parametrize("value", [inf, -(1 << 63), 1 << 63, (1 << 64) - 1, "1", None, [], b"1"])
@pytest.mark.parametrize("name", [*ENTRY, *range(9)])
def test_what_cannot_be_is_refused(name: str | int, value: object) -> None:
    entry: Any = {**ENTRY, "stat": [*ENTRY["stat"]]}
    (entry if isinstance(name, str) else entry["stat"])[name] = value
    if name == "command" and value == "1":
        return
    with pytest.raises(GuestError, match="agent: processes: "):
        checked([entry])


@pytest.mark.parametrize(
    "stat", [ENTRY["stat"][:-1], [*ENTRY["stat"], 1], ["SS", *ENTRY["stat"][1:]]]
)
def test_stats_of_another_kind_are_refused(stat: list[object]) -> None:
    with pytest.raises(GuestError):
        checked([{**ENTRY, "stat": stat}])


@pytest.mark.parametrize("answer", [None, {}, [None], [{}], [[]], "x"])
def test_other_answers_are_refused(answer: object) -> None:
    with pytest.raises(GuestError):
        checked(answer)
