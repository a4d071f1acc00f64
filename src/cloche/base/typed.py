"""Records with typed fields, and how JSON becomes one.

A field's annotation is its kind (base.kinds). Where a module has `from __future__ import
annotations` that costs 20 µs a field when the first value comes.
"""

from __future__ import annotations

import sys

from cloche.base.kinds import Misfit, taker, unexpected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, ClassVar, TypeVar, dataclass_transform

    from cloche.base.kinds import Take

    S = TypeVar("S", bound="Struct")
else:

    def dataclass_transform(**_: object) -> object:
        """What it says is for type checkers."""
        return lambda kind: kind


_REQUIRED = object()


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
            raise unexpected("object", value)
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
