"""JSON without the json package gives what the json package gives."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.base import fastjson

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(_values)
def test_values_come_back(value: object) -> None:
    assert fastjson.loads(fastjson.dumps(value)) == value
    assert fastjson.loads(json.dumps(value, indent=3, ensure_ascii=False).encode()) == value


@given(_values)
def test_text_is_that_of_the_json_package(value: object) -> None:
    assert fastjson.dumps(value) == json.dumps(value)
    assert fastjson.compact(value) == json.dumps(value, separators=(",", ":"))
    assert json.loads(fastjson.pretty(value)) == value


@given(st.text(alphabet='{}[]",:0123456789.eE+-truefalsn \\u\n', max_size=30))
def test_what_json_refuses_is_refused(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011 (json words it where it is imported)
            fastjson.loads(text)
    else:
        assert fastjson.loads(text) == expected


@pytest.mark.parametrize("text", ["", "{", '{"a": ', '{"a" 1}', '"\\x"', "[1,]", "nul", "1 2"])
def test_refusals_where_json_was_never_imported(text: str) -> None:
    """The scanner looks for its exception in json.decoder, and fails oddly without it."""
    code = (
        "import sys\nfrom cloche.base import fastjson\nassert 'json' not in sys.modules\n"
        f"try:\n fastjson.loads({text!r})\nexcept ValueError as error:\n print(error)"
    )
    argv = [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}"]
    result = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert result.stdout == ("text after the JSON value\n" if text == "1 2" else "not JSON\n")


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ValueError, match="too deeply"):
        fastjson.loads("[" * 1_000_000)
