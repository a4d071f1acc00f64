"""Names that are in an environment twice."""

from __future__ import annotations

from cloche.model.environment import hook_environment, process_environment


def test_a_process_has_each_name_where_it_came_first() -> None:
    entries = ["A=1", "B=2", "A=x=y", "C=", "B="]
    assert process_environment(entries) == ["A=x=y", "B=", "C="]


def test_a_hook_has_each_name_where_it_came_last() -> None:
    entries = ["A=1", "B=2", "A", "A=3", "A", "C=4"]
    assert hook_environment(entries) == ["B=2", "A", "A=3", "A", "C=4"]
