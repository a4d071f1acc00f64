"""Kinds of values that come as JSON or msgpack, and the check of a value against one.

What msgspec's convert does, as far as cloche wants it: importing msgspec, with `typing`, `re` and
`enum` behind it, took 16 ms of each start. A kind is

- `str`, `int`, `bool`, `bytes`, `object` (anything), or a Struct (base.typed),
- `tuple[kind, ...]`, `tuple[kind, kind]`, `list[kind]`, `dict[kind, kind]`,
- a Kind with bounds of its own, such as `Int(0, 255)`, a Record, Each or Items,
- any of them `| None`.
"""

from __future__ import annotations

from itertools import repeat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    Take = Callable[[Any], Any]

_GENERIC: Any = type(list[int])
_UNION: Any = type(int | None)
_NAMES = {dict: "object", list: "array", tuple: "array", type(None): "null", memoryview: "bytes"}
# Of all numbers of JSON and msgpack.
_LEAST, _MOST = -(1 << 63), (1 << 64) - 1


class Misfit(ValueError):
    """A value that is not of its kind; *steps* lead to it, the innermost first."""

    def __init__(self, why: str, *steps: str | int) -> None:
        super().__init__(why)
        self.why = why
        self.steps = [*steps]


def unexpected(expected: str, value: object) -> Misfit:
    """A *value* of another type than is *expected*."""
    kind = type(value)
    return Misfit(f"expected {expected}, got {_NAMES.get(kind, kind.__name__)}")


def convert(value: Any, kind: Any) -> Any:  # noqa: ANN401 (what *kind* makes of it)
    """*value*, as JSON or msgpack has it, as a *kind*; Misfit where it is none."""
    return taker(kind)(value)


def taker(kind: Any) -> Take:  # noqa: ANN401 (a type, or a Kind)
    """What converts values to a *kind*."""
    if hasattr(kind, "take"):
        found: Take = kind.take
        return found
    if type(kind) is _UNION:
        (inner,) = (each for each in kind.__args__ if each is not type(None))
        return _Optional(inner).take
    if type(kind) is not _GENERIC:
        return _PLAIN[kind]
    origin, arguments = kind.__origin__, kind.__args__
    if origin is dict:
        return _dict_of(*map(taker, arguments), keeps_null=is_optional(arguments[1]))
    if origin is tuple and arguments[-1] is not ...:
        return Each(*arguments).take
    return Items(arguments[0], make=origin).take


def is_optional(kind: object) -> bool:
    """Whether None is one of that *kind*."""
    return isinstance(kind, _Optional) or type(kind) is _UNION


class Kind:
    """A kind of values; `take` is what checks one, and makes it what it is here."""

    expected = ""

    def take(self, value: Any) -> Any:  # noqa: ANN401
        """*value* as it is kept; Misfit where it is not of this kind."""
        raise NotImplementedError

    def __or__(self, _: None) -> _Optional:
        return _Optional(self)


class _Optional(Kind):
    """A kind or None."""

    def __init__(self, inner: object) -> None:
        self.inner = inner
        self._take = taker(inner)

    def take(self, value: Any) -> Any:  # noqa: ANN401
        """As Kind.take."""
        return None if value is None else self._take(value)


class Int(Kind):
    """A number from *low* to *high*."""

    def __init__(self, low: int = _LEAST, high: int = _MOST) -> None:
        self.low = low
        self.high = high

    def take(self, value: Any) -> int:  # noqa: ANN401
        """As Kind.take."""
        if type(value) is not int:
            raise unexpected("int", value)
        if self.low <= value <= self.high:
            return value
        if not _LEAST <= value <= _MOST:
            raise Misfit("number out of range: expected at most 64 bits")
        raise Misfit(f"expected int {f'>= {self.low}' if value < self.low else f'<= {self.high}'}")


class _Exactly(Kind):
    """Values of one type of Python's, of *least* to *most* characters, bytes or items."""

    def __init__(self, kind: type, least: int = 0, most: int = 0) -> None:
        self._kind: Any = kind
        self._least = least
        self._most = most

    def take(self, value: Any) -> Any:  # noqa: ANN401
        """As Kind.take."""
        if type(value) is not self._kind:
            raise unexpected(_NAMES.get(self._kind, self._kind.__name__), value)
        if self._least or self._most:
            _check_length(self._kind.__name__, len(value), self._least, self._most)
        return value


def _check_length(name: str, length: int, least: int, most: int) -> None:
    if length < least:
        raise Misfit(f"expected {name} of length >= {least}")
    if most and length > most:
        raise Misfit(f"expected {name} of length <= {most}")


class Text(_Exactly):
    """A string of *least* to *most* characters; 0: as many as there are."""

    def __init__(self, least: int = 0, most: int = 0) -> None:
        super().__init__(str, least, most)


class Bytes(_Exactly):
    """*least* to *most* bytes; 0: as many as there are."""

    def __init__(self, least: int = 0, most: int = 0) -> None:
        super().__init__(bytes, least, most)


def _taken(takes: Iterable[Take], values: list[Any]) -> list[Any]:
    taken: list[Any] = []
    try:
        for take, value in zip(takes, values):  # noqa: B905 (one may be endless)
            taken.append(take(value))
    except Misfit as misfit:
        misfit.steps.append(len(taken))
        raise
    return taken


class Items(Kind):
    """A tuple, or what else *make* is, of *least* values of a *kind* at least."""

    def __init__(self, kind: object, *, least: int = 0, make: type = tuple) -> None:
        self.kind = kind
        self._take = taker(kind)
        self._least = least
        self._make = make

    def take(self, value: Any) -> Any:  # noqa: ANN401
        """As Kind.take."""
        if type(value) is not list:
            raise unexpected("array", value)
        _check_length("array", len(value), self._least, 0)
        taken = _taken(repeat(self._take), value)
        return taken if self._make is list else self._make(taken)


class Each(Kind):
    """A tuple of as many values as there are *kinds*."""

    def __init__(self, *kinds: object) -> None:
        self._takes = [taker(kind) for kind in kinds]

    def take(self, value: Any) -> tuple[Any, ...]:  # noqa: ANN401
        """As Kind.take."""
        if type(value) is not list:
            raise unexpected("array", value)
        if len(value) != len(self._takes):
            raise Misfit(f"expected array of length {len(self._takes)}, got {len(value)}")
        return tuple(_taken(self._takes, value))


class Record(Kind):
    """What becomes a dict with just these *fields*: name → kind. What else comes is left out."""

    def __init__(self, **fields: object) -> None:
        self._takes = {name: taker(kind) for name, kind in fields.items()}

    def take(self, value: Any) -> dict[str, Any]:  # noqa: ANN401
        """As Kind.take."""
        if type(value) is not dict:
            raise unexpected("object", value)
        found = {}
        for name, take in self._takes.items():
            if name not in value:
                raise Misfit("missing, but required", name)
            try:
                found[name] = take(value[name])
            except Misfit as misfit:
                misfit.steps.append(name)
                raise
        return found


def _anything(value: Any) -> Any:  # noqa: ANN401
    return value


_PLAIN: dict[Any, Take] = {
    object: _anything,
    int: Int().take,
    **{kind: _Exactly(kind).take for kind in (str, bool, bytes)},
}


def _dict_of(take_key: Take, take: Take, *, keeps_null: bool) -> Take:
    """A null means absent, unless it is a value of its own."""

    def take_items(value: Any) -> dict[Any, Any]:  # noqa: ANN401
        if type(value) is not dict:
            raise unexpected("object", value)
        found = {}
        for name, item in value.items():
            if item is None and not keeps_null:
                continue
            key = take_key(name)
            try:
                found[key] = take(item)
            except Misfit as misfit:
                misfit.steps.append(name)
                raise
        return found

    return take_items
