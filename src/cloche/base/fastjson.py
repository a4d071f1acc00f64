"""JSON for the short-lived verbs, without importing json.

The json package imports re, enum and collections, 5 ms in processes that engines start several
times per container; CPython's C scanner and encoder alone cost 0.1 ms.
"""

from __future__ import annotations

from _json import encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


class _Rules:
    """What the scanner asks of a decoder (json.decoder.JSONDecoder has the same attributes)."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}  # noqa: RUF012 (the scanner clears it)


def loads(text: str | bytes) -> Any:  # noqa: ANN401 (any JSON value)
    """The value of a JSON text; ValueError when it is none."""
    if isinstance(text, bytes):
        text = text.decode()
    text = text.strip(" \t\r\n")
    try:
        value, end = make_scanner(_Rules)(text, 0)  # type: ignore[arg-type]
    except (StopIteration, SystemError, ValueError):
        # Before Python 3.13 it finds its exception class only where json is imported, and raises
        # SystemError else; 3.13 imports it. It is one and the same error in all cases.
        raise ValueError("not JSON") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if end != len(text):
        raise ValueError("text after the JSON value")
    return value


def first(text: str, position: int) -> tuple[Any, int]:
    """The JSON value that begins at *position*, and where it ends; ValueError where none does."""
    try:
        found: tuple[Any, int] = make_scanner(_Rules)(text, position)  # type: ignore[arg-type]
    except (StopIteration, SystemError, ValueError, RecursionError):
        raise ValueError("not JSON") from None
    return found


def problem(text: str | bytes) -> str:
    """What is wrong with a text that `loads` refuses, and where; empty where nothing is."""
    import json  # there is time now

    try:
        json.loads(text)
    except ValueError as error:
        return str(error)
    except RecursionError:
        return "nested too deeply"
    return ""


def _refuse(value: object) -> object:
    raise TypeError(f"{type(value).__name__} has no JSON")


def dumps(value: object) -> str:
    """*value* as JSON on one line."""
    return _encode(value, ": ", ", ")


def compact(value: object) -> str:
    """*value* as JSON without blanks, as Go writes it."""
    return _encode(value, ":", ",")


def _encode(value: object, colon: str, comma: str) -> str:
    encode = make_encoder(
        None, _refuse, encode_basestring_ascii, None, colon, comma, False, False, True
    )
    return "".join(encode(value, 0))


def pretty(value: object) -> str:
    """*value* as JSON indented by two blanks, as runc prints it."""
    return "".join(_pretty(value, "\n"))


def _pretty(value: object, line: str) -> Iterator[str]:
    inner = line + "  "
    if isinstance(value, dict) and value:
        for number, (key, item) in enumerate(value.items()):
            yield f"{',' if number else '{'}{inner}{dumps(str(key))}: "
            yield from _pretty(item, inner)
        yield line + "}"
    elif isinstance(value, list | tuple) and value:
        for number, item in enumerate(value):
            yield f"{',' if number else '['}{inner}"
            yield from _pretty(item, inner)
        yield line + "]"
    else:
        yield dumps(value)
