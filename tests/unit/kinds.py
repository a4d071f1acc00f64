"""The kinds of config.json's fields, walked: where values stand, and how they may look."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from cloche.base.kinds import Int, Items, Text, is_optional
from cloche.base.typed import Struct, layout_of

Steps = tuple[str | int, ...]

# In place of a key that may be any.
MARK = "MARK-OF-THE-PLACE"


class Field(NamedTuple):
    """One field of a structure, as JSON has it."""

    name: str
    kind: Any
    is_required: bool


def fields(kind: type[Struct]) -> list[Field]:
    """The fields of a structure."""
    layout = layout_of(kind)
    return [
        Field(json, layout.kinds[name], name in layout.required)
        for json, name in layout.names.items()
    ]


def inner(kind: Any) -> Any:  # noqa: ANN401
    """*kind* without the None that it may also be."""
    if not is_optional(kind):
        return kind
    if hasattr(kind, "inner"):
        return kind.inner
    return next(each for each in kind.__args__ if each is not type(None))


def is_structure(kind: Any) -> bool:  # noqa: ANN401
    """Whether it has fields."""
    return isinstance(kind, type) and not hasattr(kind, "__origin__") and issubclass(kind, Struct)


def item_of(kind: Any) -> Any:  # noqa: ANN401
    """What a list of that *kind* holds; None where it is no list."""
    if isinstance(kind, Items):
        return kind.kind
    return kind.__args__[0] if getattr(kind, "__origin__", None) in (tuple, list) else None


def pair_of(kind: Any) -> tuple[Any, Any] | None:  # noqa: ANN401
    """The kinds of keys and values of a map; None where it is none."""
    return kind.__args__ if getattr(kind, "__origin__", None) is dict else None


def leaves(kind: Any, at: Steps = ()) -> Iterator[tuple[Steps, Any]]:  # noqa: ANN401
    """Every place below a *kind* that is no structure, with its kind; lists have one item."""
    kind = inner(kind)
    if is_structure(kind):
        for field in fields(kind):
            yield from leaves(field.kind, (*at, field.name))
    elif item := item_of(kind):
        yield from leaves(item, (*at, 0))
    elif pair := pair_of(kind):
        yield from leaves(pair[1], (*at, MARK))
    else:
        yield at, kind


def keys(kind: Any, at: Steps = ()) -> Iterator[tuple[Steps, Any]]:  # noqa: ANN401
    """Every map with free keys below a *kind*, with the kind of its keys."""
    kind = inner(kind)
    if is_structure(kind):
        for field in fields(kind):
            yield from keys(field.kind, (*at, field.name))
    elif item := item_of(kind):
        yield from keys(item, (*at, 0))
    elif pair := pair_of(kind):
        yield at, pair[0]
        yield from keys(pair[1], (*at, MARK))


def places(kind: type, *, of: type) -> list[Steps]:
    """The places below *kind* for strings, or for numbers."""
    wanted = {str: Text, int: Int}[of]
    return sorted(
        {at for at, found in leaves(kind) if isinstance(found, wanted) or found is of}, key=str
    )


def smallest(kind: Any) -> Any:  # noqa: ANN401
    """A value of *kind* with what it must have and no more."""
    kind = inner(kind)
    if is_structure(kind):
        return {field.name: smallest(field.kind) for field in fields(kind) if field.is_required}
    if item_of(kind):
        return []
    if pair_of(kind):
        return {}
    if isinstance(kind, Text):
        return "x"
    return 1 if isinstance(kind, Int) else {bool: True}.get(kind, {})


def put(kind: Any, place: Any, steps: Steps, value: object) -> Any:  # noqa: ANN401
    """*place*, a JSON value for *kind*, with *value* at *steps*; what is missing is made."""
    if not steps:
        return value
    if place is None:
        place = smallest(kind)
    step, rest = steps[0], steps[1:]
    below = kind_at(kind, step)
    if isinstance(place, list):
        if not place:
            place.append(smallest(below))
        place[0] = put(below, place[0], rest, value)
        return place
    if step == MARK and place:
        step = next(iter(place))
    place[step] = put(below, place.get(step), rest, value)
    return place


def kind_at(kind: Any, step: str | int) -> Any:  # noqa: ANN401
    """The kind of what stands at *step*."""
    kind = inner(kind)
    if is_structure(kind):
        return next(field.kind for field in fields(kind) if field.name == step)
    if item := item_of(kind):
        return item
    pair = pair_of(kind)
    return pair[1] if pair else object
