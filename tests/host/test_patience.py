"""No test of this project measures how fast the machine is (see engine/patience.py)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = [path for folder in ("vm", "engine", "host") for path in (TESTS / folder).rglob("*.py")]
# Where something else than a test's patience is told: cloche's own limit for a hook.
OTHERS = {"hook"}
LEAST = 5.0
"""Shorter ones are the pauses of a test that sees nothing come."""


def limits(tree: ast.AST) -> Iterator[ast.Constant]:
    """Every number that stands for a time to wait."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func).rpartition(".")[2]
        found = [keyword.value for keyword in call.keywords if keyword.arg == "timeout"]
        if name in ("wait", "settimeout"):
            found += call.args[:1]
        if name == "wait_until":
            found += call.args[2:]
        if name not in OTHERS:
            yield from (each for each in found if isinstance(each, ast.Constant))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_what_is_waited_for_has_no_time_of_its_own(path: Path) -> None:
    found = [
        f"line {each.lineno}: {each.value} s"
        for each in limits(ast.parse(path.read_text()))
        if isinstance(each.value, int | float) and each.value >= LEAST
    ]
    assert found == [], "use PATIENCE_SECONDS of engine/patience.py, or no limit"
