"""Everything that one run of the benchmark has found out."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.cases import Phases
from bench.facts import Facts
from bench.memory import Crowd, Idle
from bench.rounds import Series

RUN = "run"
EXEC = "exec"
DOCKER = "docker"
STATE = "state"
MEMORY = "memory"
CROWD = "crowd"
PHASES = "phases"
ALL = (RUN, EXEC, STATE, DOCKER, PHASES, MEMORY, CROWD)


@dataclass
class Results:
    """*skipped* has the cases without results, and why."""

    facts: Facts
    load_before: float
    load_after: float = 0.0
    seconds: float = 0.0
    series: dict[str, Series] = field(default_factory=dict)
    phases: list[Phases] = field(default_factory=list)
    memory: Idle | None = None
    crowd: Crowd | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    def not_asked(self) -> list[str]:
        """The cases that were neither measured nor failed."""
        measured = {
            PHASES: bool(self.phases),
            MEMORY: self.memory is not None,
            CROWD: self.crowd is not None,
        }
        return [
            case
            for case in ALL
            if case not in self.series and case not in self.skipped and not measured.get(case)
        ]
