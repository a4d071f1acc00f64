"""Records, and values checked on their way into them: as msgspec does it, with fewer words."""

from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.base.kinds import Bytes, Each, Int, Items, Misfit, Record, Text, convert
from cloche.base.typed import Struct, field, plain, replace

Small: Any = Int(0, 7)
Named: Any = Text(1, 3)


class Inner(Struct, rename="camel"):
    one_word: int
    other_word: str = "x"


class Outer(Struct):
    number: Small = 1
    name: Named | None = None
    flag: bool = False
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()
    free: dict[str, int] = field(default={})
    spelled: int = field(default=0, name="SPELLED")


class TheirInner(msgspec.Struct, rename="camel"):
    one_word: int
    other_word: str = "x"


class TheirOuter(msgspec.Struct):
    number: Annotated[int, msgspec.Meta(ge=0, le=7)] = 1
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=3)] | None = None
    flag: bool = False
    inner: TheirInner | None = None
    many: tuple[TheirInner, ...] = ()
    free: dict[str, int] = {}
    spelled: int = msgspec.field(default=0, name="SPELLED")


LEAVES = st.integers(-2, 9) | st.text(max_size=4) | st.booleans() | st.floats(allow_nan=False)
NAMES = st.sampled_from(["number", "name", "flag", "inner", "many", "free", "SPELLED", "oneWord"])
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)


@given(VALUES)
def test_what_fits_is_what_msgspec_takes(value: Any) -> None:  # noqa: ANN401
    try:
        theirs = plain(msgspec.to_builtins(msgspec.convert(value, TheirOuter)))
    except msgspec.ValidationError:
        theirs = None
    try:
        ours = plain(convert(value, Outer))
    except Misfit:
        ours = None
    assert ours == theirs


@pytest.mark.parametrize(
    ("kind", "value", "why", "steps"),
    [
        (Outer, [], "expected object, got array", []),
        (Outer, {"number": 8}, "expected int <= 7", ["number"]),
        (Outer, {"number": True}, "expected int, got bool", ["number"]),
        (Outer, {"name": "long"}, "expected str of length <= 3", ["name"]),
        (Outer, {"many": [{"oneWord": 1}, {}]}, "missing, but required", ["many", 1, "oneWord"]),
        (Outer, {"free": {"a": "b"}}, "expected int, got str", ["free", "a"]),
        (Items(int, least=1), [], "expected array of length >= 1", []),
        (Each(int, str), [1], "expected array of length 2, got 1", []),
        (Each(int, str), [1, None], "expected str, got null", [1]),
        (Record(a=Bytes(2, 2)), {"a": b"x"}, "expected bytes of length >= 2", ["a"]),
        (Record(a=int), {}, "missing, but required", ["a"]),
        (int, 1 << 64, "number out of range: expected at most 64 bits", []),
    ],
    ids=str,
)
def test_what_does_not_fit(kind: object, value: object, why: str, steps: list[str | int]) -> None:
    with pytest.raises(Misfit) as caught:
        convert(value, kind)
    assert (caught.value.why, caught.value.steps[::-1]) == (why, steps)


def test_a_null_is_absent_unless_it_may_be_there() -> None:
    assert convert({"number": None, "free": {"a": None}}, Outer) == Outer()
    assert convert({"a": None}, Record(a=str | None)) == {"a": None}
    assert convert({"a": None}, dict[str, str | None]) == {"a": None}


def test_records() -> None:
    outer = Outer(2, inner=Inner(1))
    assert replace(outer, number=3) == Outer(3, inner=Inner(1)) != outer
    assert repr(Inner(1)) == "Inner(one_word=1, other_word='x')"
    assert {Inner(1), Inner(1, "x")} == {Inner(1)}
    assert plain(outer)["inner"] == {"oneWord": 1, "otherWord": "x"}
    with pytest.raises(AttributeError):
        outer.number = 4  # type: ignore[misc]
    with pytest.raises(TypeError):
        Inner()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Inner(1, colour=2)  # type: ignore[call-arg]


def test_records_share_nothing_that_can_be_changed() -> None:
    Outer().free["a"] = 1
    convert({}, Outer).free["a"] = 1
    assert Outer().free == {}
