"""Frames: however the bytes arrive, the same frames come out; what may not come is refused."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.base.errors import GuestError
from cloche.wire import frames
from cloche.wire.frames import CREDIT, DATA, EOF, EVENT, REPLY, REQUEST, Decoder, encode

_streams = st.integers(1, 2**32 - 1)
_frames = st.one_of(
    st.tuples(_streams, st.just(DATA), st.binary(max_size=300)),
    st.tuples(_streams, st.just(CREDIT), st.binary(min_size=4, max_size=4)),
    st.tuples(_streams, st.just(EOF), st.just(b"")),
    st.tuples(st.just(0), st.sampled_from([REPLY, EVENT]), st.binary(max_size=300)),
)


@given(st.lists(_frames), st.lists(st.integers(0, 2000)))
def test_any_chunking_gives_the_same_frames(
    sent: list[tuple[int, int, bytes]], cuts: list[int]
) -> None:
    data = b"".join(encode(*frame) for frame in sent)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    decoder = Decoder()
    received = []
    for start, end in itertools.pairwise(edges):
        received += decoder.feed(data[start:end])
    assert received == sent


@given(st.lists(st.binary(max_size=100), max_size=5))
def test_any_bytes_give_frames_or_an_error(chunks: list[bytes]) -> None:
    decoder = Decoder()
    try:
        found = [frame for chunk in chunks for frame in decoder.feed(chunk)]
    except GuestError:
        return
    assert b"".join(chunks).startswith(b"".join(encode(*frame) for frame in found))


def test_the_longest_frames() -> None:
    assert Decoder().feed(encode(1, DATA, bytes(65536))) == [(1, DATA, bytes(65536))]
    assert len(encode(0, REQUEST, bytes(8 << 20))) == 8 + (8 << 20)
    with pytest.raises(ValueError, match="65537 bytes"):
        encode(1, DATA, bytes(65537))
    with pytest.raises(ValueError, match="8388609 bytes"):
        encode(0, REQUEST, bytes((8 << 20) + 1))


@pytest.mark.parametrize(
    ("stream", "kind", "length"),
    [
        (0, DATA, 1),
        (0, CREDIT, 4),
        (0, EOF, 0),
        (1, REPLY, 1),
        (1, EVENT, 1),
        (0, REQUEST, 1),
        (1, REQUEST, 1),
        (0, 6, 0),
        (1, 255, 0),
        (1, DATA, 65537),
        (0, REPLY, 65537),
        (1, CREDIT, 3),
        (1, CREDIT, 5),
        (1, EOF, 1),
    ],
)
def test_a_header_that_may_not_come_is_refused_before_its_payload(
    stream: int, kind: int, length: int
) -> None:
    header = frames.HEADER.pack(stream, kind | length << 8)
    with pytest.raises(GuestError, match=f"kind {kind}"):
        Decoder().feed(header)


def test_credit_is_little_endian() -> None:
    assert frames.encode_credit(7, 0x01020304) == bytes.fromhex("07000000 01 040000 04030201")
