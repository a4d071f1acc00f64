"""msgpack for the values of the first requests; msgspec, for all others, takes 10 ms to import.

The format is that of github.com/msgpack/msgpack/blob/master/spec.md; a test compares with msgspec.
"""

from __future__ import annotations

from struct import pack as _struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SHORT = 16
_BYTE, _WORD = 1 << 8, 1 << 16


def pack(value: Any) -> bytes:  # noqa: ANN401 (each kind is told from the others here)
    """*value* in msgpack: bool, int from 0 on, str, bytes, list or dict; TypeError for others."""
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return _number(value)
    if isinstance(value, str):
        data = value.encode()
        return _head(len(data), 0xA0, 32, b"\xd9", b"\xda") + data
    if isinstance(value, bytes):
        return _head(len(value), 0, 0, b"\xc4", b"\xc5") + value
    if isinstance(value, list):
        return _head(len(value), 0x90, _SHORT, b"", b"\xdc") + b"".join(map(pack, value))
    if isinstance(value, dict):
        items = (pack(key) + pack(item) for key, item in value.items())
        return _head(len(value), 0x80, _SHORT, b"", b"\xde") + b"".join(items)
    raise TypeError(f"no request has a {type(value).__name__}")


def _number(value: int) -> bytes:
    for limit, head, form in ((0x80, b"", "B"), (_BYTE, b"\xcc", "B"), (_WORD, b"\xcd", ">H")):
        if 0 <= value < limit:
            return head + _struct(form, value)
    if 0 <= value < 1 << 32:
        return b"\xce" + _struct(">I", value)
    if 0 <= value < 1 << 64:
        return b"\xcf" + _struct(">Q", value)
    raise TypeError(f"no request has the number {value}")


def _head(size: int, short: int, limit: int, byte: bytes, word: bytes) -> bytes:
    """The head of something of *size*: in one byte below *limit*, else *byte* or *word* first."""
    if size < limit:
        return _struct("B", short | size)
    if byte and size < _BYTE:
        return byte + _struct("B", size)
    if size < _WORD:
        return word + _struct(">H", size)
    raise TypeError(f"no request has {size} of something")
