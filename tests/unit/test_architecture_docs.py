"""docs/architecture.md and docs/agent.md name the modules that there are, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PACKAGES = sorted(path.parent.name for path in (TOP / "src/cloche").glob("*/__init__.py"))


def _paragraph(package: str) -> str:
    text = (TOP / "docs/architecture.md").read_text(encoding="utf-8")
    found = re.search(rf"^\*\*`{package}`\*\*(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no paragraph on {package}"
    return found[1]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_modules_of_a_package(package: str) -> None:
    named = set(re.findall(r"`([a-z_0-9]+)`", _paragraph(package)))
    there = {path.stem for path in (TOP / "src/cloche" / package).glob("*.py")} - {"__init__"}
    verbs = {"run", "vm"}  # said of a module, not one itself
    assert named - there <= verbs
    assert there <= named


def test_the_files_of_the_agent() -> None:
    text = (TOP / "docs/agent.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:child/)?([a-z_]+)(?:\.rs)?`", text))
    there = {path.stem for path in (TOP / "agent/src").glob("*.rs")}
    assert there - named <= {"lib", "vectors"}  # the list of modules, and a part of the tests
