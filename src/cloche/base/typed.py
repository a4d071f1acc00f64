"""Records with typed fields, and values of JSON or msgpack that are checked on their way into them.

What msgspec's Struct and convert do, as far as cloche wants it: importing msgspec, with `typing`,
`re` and `enum` behind it, took 16 ms of each start. A field's annotation is its kind. That is

- `str`, `int`, `bool`, `bytes`, `object` (anything), or another Struct,
- `tuple[kind, ...]`, `tuple[kind, kind]`, `list[kind]`, `dict[kind, kind]`,
- a Kind with bounds of its own, such as `Int(0, 255)`, a Record, Each or Items,
- any of them `| None`.

Where a module has `from __future__ import annotations`, what its records are converted from takes
20 µs more for each field.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, ClassVar, TypeVar, dataclass_transform

    S = TypeVar("S", bound="Struct")
    Take = Callable[[Any], Any]
else:

    def dataclass_transform(**_: object) -> object:
        """What it says is for type checkers."""
        return lambda kind: kind


_REQUIRED = object()
_GENERIC = type(list[int])
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


def _unexpected(expected: str, value: object) -> Misfit:
    kind = type(value)
    return Misfit(f"expected {expected}, got {_NAMES.get(kind, kind.__name__)}")


def convert(value: Any, kind: Any) -> Any:  # noqa: ANN401 (what *kind* makes of it)
    """*value*, as JSON or msgpack has it, as a *kind*; Misfit where it is none."""
    return taker(kind)(value)


def taker(kind: Any) -> Take:  # noqa: ANN401 (a type, or a Kind)
    """What converts values to a *kind*."""
    if isinstance(kind, Kind):
        return kind.take
    if isinstance(kind, type) and type(kind) is not _GENERIC:
        return kind.take if issubclass(kind, Struct) else _PLAIN[kind]
    if type(kind) is _UNION:
        (inner,) = (each for each in kind.__args__ if each is not type(None))
        return _Optional(inner).take
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
            raise _unexpected("int", value)
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
            raise _unexpected(_NAMES.get(self._kind, self._kind.__name__), value)
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
            raise _unexpected("array", value)
        _check_length("array", len(value), self._least, 0)
        taken: list[Any] = []
        take = self._take
        try:
            for item in value:
                taken.append(take(item))
        except Misfit as misfit:
            misfit.steps.append(len(taken))
            raise
        return taken if self._make is list else self._make(taken)


class Each(Kind):
    """A tuple of as many values as there are *kinds*."""

    def __init__(self, *kinds: object) -> None:
        self._takes = [taker(kind) for kind in kinds]

    def take(self, value: Any) -> tuple[Any, ...]:  # noqa: ANN401
        """As Kind.take."""
        if type(value) is not list:
            raise _unexpected("array", value)
        if len(value) != len(self._takes):
            raise Misfit(f"expected array of length {len(self._takes)}, got {len(value)}")
        taken: list[Any] = []
        try:
            for take, item in zip(self._takes, value, strict=True):
                taken.append(take(item))
        except Misfit as misfit:
            misfit.steps.append(len(taken))
            raise
        return tuple(taken)


class Record(Kind):
    """What becomes a dict with just these *fields*: name → kind. What else comes is left out."""

    def __init__(self, **fields: object) -> None:
        self._takes = {name: taker(kind) for name, kind in fields.items()}

    def take(self, value: Any) -> dict[str, Any]:  # noqa: ANN401
        """As Kind.take."""
        if type(value) is not dict:
            raise _unexpected("object", value)
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
            raise _unexpected("object", value)
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


class _Field:
    def __init__(self, name: str, default: object) -> None:
        self.name = name
        self.default = default


def field(*, default: Any = _REQUIRED, name: str = "") -> Any:  # noqa: ANN401 (it stands for a value)
    """A field with another *name* in JSON, or with a *default* that others could change."""
    return _Field(name, default)


class _Layout:
    """What there is to know of a Struct, found out when it is first needed."""

    def __init__(self, kind: type[Struct], rename: str) -> None:
        self.kinds: dict[str, Any] = dict(kind.__annotations__)
        self._module = sys.modules[kind.__module__]
        self.defaults: dict[str, Any] = {}
        # By their names in JSON.
        self.names: dict[str, str] = {}
        self._takes: dict[str, tuple[str, Take]] = {}
        for name in self.kinds:
            value = kind.__dict__.get(name, _REQUIRED)
            known = value if isinstance(value, _Field) else _Field("", value)
            self.names[known.name or _spelled(name, rename)] = name
            if known.default is not _REQUIRED:
                self.defaults[name] = known.default
        self.required = [name for name in self.kinds if name not in self.defaults]
        self.copied = [
            name for name, value in self.defaults.items() if isinstance(value, dict | list)
        ]

    @property
    def takes(self) -> dict[str, tuple[str, Take]]:
        """JSON name → name here, and what converts."""
        if not self._takes:
            self._takes = {
                json: (name, taker(self._kind(name))) for json, name in self.names.items()
            }
        return self._takes

    def _kind(self, name: str) -> Any:  # noqa: ANN401
        kind = self.kinds[name]
        return eval(kind, vars(self._module)) if isinstance(kind, str) else kind

    def start(self, own: dict[str, Any]) -> None:
        """Give a record its defaults, none of them shared that could be changed."""
        own.update(self.defaults)
        for name in self.copied:
            own[name] = own[name].copy()


def _spelled(name: str, rename: str) -> str:
    if not rename:
        return name
    first, *rest = name.split("_")
    words = [first.title() if rename == "pascal" else first, *map(str.title, rest)]
    return "".join(words)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Struct:
    """A record: its annotations are its fields. It cannot be changed, `replace` makes another.

    *rename*: how its names are spelled in JSON, `camel` (camelCase) or `pascal` (PascalCase).
    """

    _rename: ClassVar[str] = ""
    _known: ClassVar[_Layout | None] = None

    def __init_subclass__(cls, rename: str = "") -> None:
        cls._rename = rename
        cls._known = None

    def __init__(self, *values: Any, **given: Any) -> None:  # noqa: ANN401
        layout = layout_of(type(self))
        own = self.__dict__
        layout.start(own)
        given = {**dict(zip(layout.kinds, values, strict=False)), **given}
        own.update(given)
        if len(values) > len(layout.kinds) or given.keys() - layout.kinds.keys():
            raise TypeError(f"{type(self).__name__}: unknown fields")
        if missing := [name for name in layout.required if name not in own]:
            raise TypeError(f"{type(self).__name__}: {', '.join(missing)}: missing")

    @classmethod
    def take(cls: type[S], value: Any) -> S:  # noqa: ANN401
        """*value* as such a record; Misfit where it is none. A null means absent, as for Go."""
        if type(value) is not dict:
            raise _unexpected("object", value)
        layout = layout_of(cls)
        record = cls.__new__(cls)
        own = record.__dict__
        layout.start(own)
        takes = layout.takes
        for json, item in value.items():
            if item is None or json not in takes:
                continue
            name, take = takes[json]
            try:
                own[name] = take(item)
            except Misfit as misfit:
                misfit.steps.append(json)
                raise
        for name in layout.required:
            if name not in own:
                json = next(json for json, known in layout.names.items() if known == name)
                raise Misfit("missing, but required", json)
        return record

    def __setattr__(self, name: str, _: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name}: cannot be changed")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__[name] for name in layout_of(type(self)).kinds))

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in items(self))
        return f"{type(self).__name__}({', '.join(shown)})"


def layout_of(kind: type[Struct]) -> _Layout:
    """What there is to know of a *kind*."""
    if kind._known is None:
        kind._known = _Layout(kind, kind._rename)
    return kind._known


def items(record: Struct) -> Iterator[tuple[str, Any]]:
    """Names and values of its fields."""
    return ((name, record.__dict__[name]) for name in layout_of(type(record)).kinds)


def replace(record: S, **changes: Any) -> S:  # noqa: ANN401
    """A record like *record* with other values in some fields."""
    return type(record)(**{**record.__dict__, **changes})


def plain(value: Any) -> Any:  # noqa: ANN401
    """*value* with dicts in place of records, as JSON has them."""
    if isinstance(value, Struct):
        layout = layout_of(type(value))
        return {json: plain(value.__dict__[name]) for json, name in layout.names.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value
