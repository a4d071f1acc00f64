"""Packing without msgspec: the same bytes as msgspec's, and nothing that it would not take."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.heart.greeting import Greeting
from cloche.wire import frames
from cloche.wire.messages import Protocol
from cloche.wire.pack import pack

# Both sides of each length at which the format changes.
SIZES = [0, 1, 15, 16, 31, 32, 255, 256, 65535]
LEAVES = st.booleans() | st.integers(0, (1 << 64) - 1) | st.text() | st.binary()
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
)


@given(VALUES)
def test_it_is_what_msgspec_makes(value: object) -> None:
    assert pack(value) == msgspec.msgpack.encode(value)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "make",
    [
        lambda size: "x" * size,
        bytes,
        lambda size: [True] * size,
        lambda size: dict.fromkeys(map(str, range(size)), 7),
    ],
)
def test_every_length(size: int, make: Any) -> None:  # noqa: ANN401 (each makes something else)
    assert pack(make(size)) == msgspec.msgpack.encode(make(size))


@pytest.mark.parametrize("bit", range(64))
def test_every_number(bit: int) -> None:
    for number in ((1 << bit) - 1, 1 << bit):
        assert pack(number) == msgspec.msgpack.encode(number)


@pytest.mark.parametrize(
    "value", [None, -1, 1 << 64, 1.5, (1,), bytearray(b"x"), "x" * 65536, bytes(65536)], ids=repr
)
def test_what_no_request_has(value: object) -> None:
    with pytest.raises(TypeError, match="no request has"):
        pack({"field": [value]})


def test_a_greeting_is_what_the_agents_connection_would_have_sent() -> None:
    greeting, protocol = Greeting(), Protocol()
    sent = [protocol.request(op, fields) for op, fields in greeting.requests]
    assert greeting.encode() == b"".join(frame for _, frame in sent)
    # The next request is none of them.
    skipped = Protocol()
    assert skipped.expect(*(op for op, _ in greeting.requests)) == [number for number, _ in sent]
    assert skipped.request("sync", {}) == protocol.request("sync", {})


def test_a_greeting_fits_a_socket_that_nobody_reads_yet() -> None:
    assert len(Greeting().encode()) < frames.MAX_PAYLOAD // 8
