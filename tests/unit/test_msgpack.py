"""msgpack without msgspec: the same bytes as msgspec's, both ways, and nothing that it refuses."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.base.msgpack import MOST_DEEP, pack, unpack
from cloche.heart.greeting import Greeting
from cloche.wire import frames
from cloche.wire.messages import Protocol

# Both sides of each length at which the format changes.
SIZES = [0, 1, 15, 16, 31, 32, 255, 256, 65535, 65536]
LEAVES = (
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text() | st.binary()
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
)


@given(VALUES)
def test_it_is_what_msgspec_makes(value: object) -> None:
    packed = pack(value)
    assert packed == msgspec.msgpack.encode(value)
    assert unpack(packed) == value


@given(st.binary(max_size=40))
def test_what_is_taken_is_what_msgspec_takes(data: bytes) -> None:
    try:
        value = unpack(data)
    except ValueError:
        return
    assert msgspec.msgpack.decode(data) == value


@given(VALUES, st.integers(0, 1 << 20), st.integers(0, 255))
def test_spoiled_bytes_are_refused_or_another_value(value: object, at: int, byte: int) -> None:
    packed = bytearray(pack(value))
    packed[at % len(packed)] = byte
    try:
        unpack(bytes(packed))
    except ValueError:
        return
    msgspec.msgpack.decode(packed)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\xc1", b"\x01\x01", b"\x81\xa1a", b"\x81\x01\x01", b"\xa2\xff\xff"),
        *(b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"),
        *(b"\x91" * (MOST_DEEP + 1) + b"\x01", b"\x91" * 60_000, b"\xcb" + bytes(7)),
    ],
    ids=lambda data: data[:6].hex() or "nothing",
)
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"cut off|begins no|after the|nested|no string|codec"):
        unpack(data)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "make",
    [
        lambda size: "x" * size,
        bytes,
        lambda size: [True] * size,
        lambda size: (None,) * size,
        lambda size: dict.fromkeys(map(str, range(size)), 7),
    ],
)
def test_every_length(size: int, make: Any) -> None:  # noqa: ANN401 (each makes something else)
    assert pack(make(size)) == msgspec.msgpack.encode(make(size))


@pytest.mark.parametrize("bit", range(64))
def test_every_number(bit: int) -> None:
    for number in ((1 << bit) - 1, 1 << bit, -(1 << bit), -(1 << bit) - 1):
        if number >= -(1 << 63):
            assert pack(number) == msgspec.msgpack.encode(number)
            assert unpack(pack(number)) == number


@pytest.mark.parametrize("value", [1 << 64, -(1 << 63) - 1, 1.5, bytearray(b"x"), {1}], ids=repr)
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
