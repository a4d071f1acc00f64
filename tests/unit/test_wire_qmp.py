"""QMP: commands as QEMU reads them, messages however they are cut."""

from __future__ import annotations

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from cloche.wire import qmp

GREETING = {"QMP": {"version": {}, "capabilities": ["oob"]}}
MESSAGES = [GREETING, {"return": {}}, {"event": "RESUME", "timestamp": {"seconds": 1}}]


def test_a_restore_is_three_commands() -> None:
    lines = qmp.restore_commands("fd:6").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"execute": "qmp_capabilities"},
        {
            "execute": "migrate-set-capabilities",
            "arguments": {"capabilities": [{"capability": "x-ignore-shared", "state": True}]},
        },
        {"execute": "migrate-incoming", "arguments": {"uri": "fd:6"}},
    ]


def test_a_command_without_arguments() -> None:
    assert json.loads(qmp.command("query-migrate")) == {"execute": "query-migrate"}
    assert qmp.command("query-migrate").endswith(b"\n")


@given(st.lists(st.integers(0, 200)), st.sampled_from([b"\n", b"\r\n"]))
def test_any_chunking_gives_the_same_messages(cuts: list[int], newline: bytes) -> None:
    data = b"".join(json.dumps(message).encode() + newline for message in MESSAGES)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    decoder = qmp.Decoder()
    found = []
    for start, end in itertools.pairwise(edges):
        found += decoder.feed(data[start:end])
    assert found == MESSAGES
