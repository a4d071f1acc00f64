"""msgpack for what the agent is sent and says; msgspec would take 16 ms of each start to import.

The format is that of github.com/msgpack/msgpack/blob/master/spec.md; a test compares with msgspec.
Neither floats nor extensions are part of the protocol; floats are read, so that errors name the
field in which there is one.
"""

from __future__ import annotations

from struct import unpack as unpack_struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# What is nested deeper is no message.
MOST_DEEP = 64
_BYTE, _WORD, _LONG, _ALL = 1 << 8, 1 << 16, 1 << 32, 1 << 64


def pack(value: Any) -> bytes:  # noqa: ANN401 (each kind is told from the others here)
    """*value* in msgpack: None, bool, int, str, bytes, list, tuple or dict; else TypeError."""
    parts: list[bytes] = []
    _pack(value, parts.append)
    return b"".join(parts)


def _pack(value: Any, add: Callable[[bytes], object]) -> None:  # noqa: ANN401
    kind = type(value)
    if kind is str:
        data = value.encode()
        add(_SHORT_TEXT[len(data)] if len(data) < 32 else _head(len(data), b"\xd9", b"\xda"))
        add(data)
    elif kind is int:
        add(_number(value))
    elif value is None or kind is bool:
        add({None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value])
    elif kind is bytes:
        add(_head(len(value), b"\xc4", b"\xc5"))
        add(value)
    elif kind is list or kind is tuple:
        add(bytes((0x90 | len(value),)) if len(value) < 16 else _head(len(value), b"", b"\xdc"))
        for item in value:
            _pack(item, add)
    elif kind is dict:
        add(bytes((0x80 | len(value),)) if len(value) < 16 else _head(len(value), b"", b"\xde"))
        for key, item in value.items():
            _pack(key, add)
            _pack(item, add)
    else:
        raise TypeError(f"no request has a {kind.__name__}")


_SHORT_TEXT = [bytes((0xA0 | size,)) for size in range(32)]


def _number(value: int) -> bytes:
    if 0 <= value < 0x80:
        return bytes((value,))
    for limit, head, size in (
        (_BYTE, b"\xcc", 1),
        (_WORD, b"\xcd", 2),
        (_LONG, b"\xce", 4),
        (_ALL, b"\xcf", 8),
    ):
        if 0 <= value < limit:
            return head + value.to_bytes(size, "big")
    if -32 <= value < 0:
        return value.to_bytes(1, "big", signed=True)
    for head, size in ((b"\xd0", 1), (b"\xd1", 2), (b"\xd2", 4), (b"\xd3", 8)):
        if -(1 << (8 * size - 1)) <= value < 0:
            return head + value.to_bytes(size, "big", signed=True)
    raise TypeError(f"no request has the number {value}")


def _head(size: int, byte: bytes, word: bytes) -> bytes:
    """The head of something of *size*; the code after that for a word is that for a long."""
    if byte and size < _BYTE:
        return byte + size.to_bytes(1, "big")
    if size < _WORD:
        return word + size.to_bytes(2, "big")
    if size < _LONG:
        return bytes((word[0] + 1,)) + size.to_bytes(4, "big")
    raise TypeError(f"no request has {size} of something")


def unpack(data: bytes) -> Any:  # noqa: ANN401 (whatever it holds)
    """The value that *data* holds, lists for arrays; ValueError where it is not just one."""
    reader = _Reader(data)
    value = reader.value(0)
    if reader.at != len(data):
        raise ValueError(f"{len(data) - reader.at} bytes after the value")
    return value


class _Reader:
    """What comes from a guest: no length is believed before as many bytes are there."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def value(self, depth: int) -> Any:  # noqa: ANN401
        code = self._bytes(1)[0]
        if code < 0x80:
            return code
        if code >= 0xE0:
            return code - 0x100
        if code >= 0xA0 and code < 0xC0:
            return self._bytes(code & 0x1F).decode()
        if code < 0xA0:
            return self._nested(code < 0x90, code & 0x0F, depth)
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code in _NUMBERS:
            size, signed = _NUMBERS[code]
            return int.from_bytes(self._bytes(size), "big", signed=signed)
        if code in _FLOATS:
            form, size = _FLOATS[code]
            return unpack_struct(form, self._bytes(size))[0]
        if code not in _LENGTHS:
            raise ValueError(f"0x{code:02x} at byte {self.at - 1} begins no value")
        kind, size = _LENGTHS[code]
        length = int.from_bytes(self._bytes(size), "big")
        if kind is bytes:
            return self._bytes(length)
        return (
            self._bytes(length).decode()
            if kind is str
            else self._nested(kind is dict, length, depth)
        )

    def _bytes(self, size: int) -> bytes:
        start, self.at = self.at, self.at + size
        if self.at > len(self._data):
            raise ValueError("cut off")
        return self._data[start : self.at]

    def _nested(self, is_map: bool, length: int, depth: int) -> Any:  # noqa: ANN401
        if depth == MOST_DEEP:
            raise ValueError("nested too deeply")
        if length > len(self._data) - self.at:  # each item takes a byte at least
            raise ValueError("cut off")
        if not is_map:
            return [self.value(depth + 1) for _ in range(length)]
        found = {}
        for _ in range(length):
            key = self.value(depth + 1)
            if type(key) is not str:
                raise ValueError(f"the key of a map at byte {self.at} is no string")
            found[key] = self.value(depth + 1)
        return found


_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_FLOATS = {0xCA: (">f", 4), 0xCB: (">d", 8)}
# Code → bytes, and whether they are signed.
_NUMBERS = {0xCC + index: (1 << index % 4, index >= 4) for index in range(8)}
# Code → type, and how many bytes tell the length.
_LENGTHS: dict[int, tuple[type, int]] = {
    **{0xC4 + index: (bytes, 1 << index) for index in range(3)},
    **{0xD9 + index: (str, 1 << index) for index in range(3)},
    **{0xDC + index: (list, 2 << index) for index in range(2)},
    **{0xDE + index: (dict, 2 << index) for index in range(2)},
}
