"""The differences that docs/oci.md lists, and which of them a case shows."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from .facts import Facts

DOCS = Path(__file__).parents[3] / "docs/oci.md"
SECTION = "## Differences from runc\n"
_ROW = re.compile(r"^\| (`[^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
_VERSIONS = re.compile(r"(from|before) runc ([0-9.]+)")
_V2 = Path("/sys/fs/cgroup/cgroup.controllers")

# Facts that there are whatever becomes of the container; all others need the probe to run.
_ALWAYS = ("exit code", "error", "runs")


@dataclass(frozen=True)
class Row:
    """A listed difference: patterns of facts, patterns of cases."""

    facts: tuple[str, ...]
    cases: tuple[str, ...]
    is_general: bool  # for all cases but those
    reason: str

    def is_about(self, case: str) -> bool:
        """Whether it is for *case*."""
        named = any(fnmatchcase(case, each) for each in self.cases)
        return not named if self.is_general else named

    def covers(self, fact: str) -> bool:
        """Whether *fact* may differ by it."""
        return any(fnmatchcase(fact, each) for each in self.facts)


def listed() -> list[Row]:
    """The rows that hold on this machine."""
    section = DOCS.read_text().partition(SECTION)[2].partition("\n## ")[0]
    rows = [
        Row(_names(facts), _names(cases), cases.startswith("all"), reason)
        for facts, cases, reason in _ROW.findall(section)
    ]
    return [row for row in rows if _holds_here(row.reason)]


def _holds_here(reason: str) -> bool:
    """Whether a row with that *reason* is for this machine's cgroups and this runc."""
    if found := _VERSIONS.match(reason):
        return (_runc_version() >= _numbers(found[2])) == (found[1] == "from")
    return not (_V2.exists() and reason.startswith("cgroup v1"))


@cache
def _runc_version() -> tuple[int, ...]:
    said = subprocess.run(["runc", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+(\.\d+)*)", said)
    assert found is not None, said
    return _numbers(found[1])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _names(cell: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`([^`]+)`", cell))


def differences(theirs: Facts, ours: Facts) -> tuple[set[str], dict[str, str]]:
    """The facts that can be compared, and those that differ, with their values.

    Where the program ran under one only, that is all there is to say.
    """
    theirs, ours = _with_verdict(theirs), _with_verdict(ours)
    names = {*theirs, *ours}
    if theirs["runs"] != ours["runs"]:
        names = {*_ALWAYS}
    return names, {
        name: f"runc {theirs.get(name)!r}, cloche {ours.get(name)!r}"
        for name in sorted(names)
        if theirs.get(name) != ours.get(name)
    }


def _with_verdict(facts: Facts) -> Facts:
    return {**facts, "runs": "yes" if {*facts} - {*_ALWAYS} else "no"}


def problems(case: str, compared: set[str], found: dict[str, str]) -> list[str]:
    """Where the differences *found* among the facts *compared* are not exactly the listed ones.

    A row that names the case must show in it; one for many cases wherever they have the fact.
    """
    rows = [row for row in listed() if row.is_about(case)]
    unlisted = [
        f"not listed: {fact}: {values}"
        for fact, values in found.items()
        if not any(row.covers(fact) for row in rows)
    ]
    return unlisted + [
        f"listed, but there is no such difference: {' '.join(row.facts)}"
        for row in rows
        if not any(row.covers(fact) for fact in found)
        and (
            any(row.covers(fact) for fact in compared) or (case in row.cases and not row.is_general)
        )
    ]
