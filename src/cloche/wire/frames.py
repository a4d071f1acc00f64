"""Frames of the agent protocol (docs/protocol.md): bytes in, frames out, no I/O."""

from __future__ import annotations

from struct import Struct

from cloche.base.errors import GuestError

PROTOCOL_VERSION = 1

DATA = 0
CREDIT = 1
EOF = 2
REQUEST = 3
REPLY = 4
EVENT = 5

HEADER = Struct("<II")
_LENGTHS = {CREDIT: 4, EOF: 0}
MAX_PAYLOAD = 65536
# What execve(2) takes at most, 6 MiB, and the rest of a container.
MAX_REQUEST = 8 << 20
# Bytes that may be under way: input, which the agent keeps, and output.
WINDOW = 262144
OUTPUT_WINDOW = 1 << 20
# Each grant wakes the agent, for which a running process has to stop.
CREDIT_STEP = 262144


def encode(stream: int, kind: int, payload: bytes | memoryview = b"") -> bytes:
    """One frame; the payload must fit (MAX_PAYLOAD, or MAX_REQUEST for a REQUEST)."""
    limit = MAX_REQUEST if kind == REQUEST else MAX_PAYLOAD
    if len(payload) > limit:
        raise ValueError(f"frame of {len(payload)} bytes, at most {limit} fit")
    return HEADER.pack(stream, kind | len(payload) << 8) + payload


def encode_credit(stream: int, count: int) -> bytes:
    """Grant *count* bytes more on *stream*."""
    return encode(stream, CREDIT, count.to_bytes(4, "little"))


class Decoder:
    """Cuts a byte stream into frames; what the guest may not send raises GuestError."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """The frames completed by *data*, as (stream, kind, payload)."""
        buffer = self._buffer
        buffer += data
        frames: list[tuple[int, int, bytes]] = []
        position = 0
        while len(buffer) - position >= 8:
            stream, word = HEADER.unpack_from(buffer, position)
            kind, length = word & 0xFF, word >> 8
            if kind > EVENT or kind == REQUEST or length > MAX_PAYLOAD:
                raise GuestError(f"agent connection: frame of kind {kind} and {length} bytes")
            if (stream == 0) != (kind >= REQUEST):
                raise GuestError(f"agent connection: frame of kind {kind} on stream {stream}")
            if length != _LENGTHS.get(kind, length):
                raise GuestError(f"agent connection: frame of kind {kind} and {length} bytes")
            end = position + 8 + length
            if len(buffer) < end:
                break
            frames.append((stream, kind, bytes(buffer[position + 8 : end])))
            position = end
        del buffer[:position]
        return frames
