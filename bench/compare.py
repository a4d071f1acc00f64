"""Runs programs in doors, in interleaved rounds, and keeps what came of each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bench.programs import MS, Program
from bench.session import Answer, NoContainer
from bench.timing import BenchError


class Place(Protocol):
    """What a program needs of a door."""

    name: str

    def run(self, script: str, timeout: float) -> Answer:
        """What *script* printed and how long it took; BenchError."""


@dataclass
class Outcome:
    """What became of one program, by door: the n-th values are of the same round.

    *first* has the first runs, which are not among the values, of programs that are told warm.
    """

    name: str
    unit: str
    higher_is_better: bool
    values: dict[str, list[float]] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def fail(self, door: str, reason: str) -> None:
        """The program does not run in *door*, and what came of it there so far does not count."""
        self.values.pop(door, None)
        self.first.pop(door, None)
        self.failed[door] = reason


@dataclass(frozen=True)
class Budget:
    """At most *rounds* that are counted, and none begins that would end after *until*.

    One is made in any case. *until* is of time.monotonic().
    """

    rounds: int
    until: float


OnRound = Callable[[int, int], None]


def compare(
    programs: Sequence[Program],
    doors: Sequence[Place],
    budget: Budget,
    tell: Callable[[Program], OnRound],
) -> list[Outcome]:
    """All *programs* in all *doors*.

    Each program may take the same part of what time is left; what quick ones leave goes to those
    after them. When none is left, what remains is told as failed for that.
    """
    outcomes = []
    for place, program in enumerate(programs):
        on_round = tell(program)
        now = time.monotonic()
        if now >= budget.until:
            outcomes.append(_no_time(program, doors))
            continue
        share = (budget.until - now) / (len(programs) - place)
        outcomes.append(run_program(program, doors, Budget(budget.rounds, now + share), on_round))
    return outcomes


def _no_time(program: Program, doors: Sequence[Place]) -> Outcome:
    outcome = _new_outcome(program)
    for door in doors:
        outcome.fail(door.name, "no time was left (--minutes)")
    return outcome


def _new_outcome(program: Program) -> Outcome:
    return Outcome(program.name, program.unit, program.higher_is_better)


def run_program(
    program: Program, doors: Sequence[Place], budget: Budget, on_round: OnRound
) -> Outcome:
    """Rounds of *program* in *doors* in turn; one where it fails is left out from then on."""
    outcome = _new_outcome(program)
    running = [door for door in doors if _prepare(program, door, outcome)]
    if program.warm:
        _round(program, running, outcome)
        outcome.first = {name: values.pop() for name, values in outcome.values.items()}
    took = 0.0
    for done in range(budget.rounds):
        began = time.monotonic()
        if done and began + took > budget.until:
            break
        _round(program, running, outcome)
        took = time.monotonic() - began
        on_round(done + 1, budget.rounds)
    for door in running:
        _tidy(program, door)
    return outcome


def _prepare(program: Program, door: Place, outcome: Outcome) -> bool:
    if not program.once:
        return True
    try:
        door.run(program.once, program.seconds)
    except BenchError as error:
        when = "" if isinstance(error, NoContainer) else "before its first run: "
        outcome.fail(door.name, f"{when}{error}")
        return False
    return True


def _tidy(program: Program, door: Place) -> None:
    if program.after:
        with contextlib.suppress(BenchError):  # it has been measured, and the door ends soon
            door.run(program.after, program.seconds)


def _round(program: Program, running: list[Place], outcome: Outcome) -> None:
    for door in list(running):
        try:
            outcome.values.setdefault(door.name, []).append(measure(program, door))
        except (BenchError, ValueError) as error:
            running.remove(door)
            outcome.fail(door.name, str(error))


def measure(program: Program, door: Place) -> float:
    """One run of *program*, in its unit; BenchError, or ValueError for what it printed."""
    if program.before:
        door.run(program.before, program.seconds)
    answer = door.run(program.command, program.seconds)
    if program.check is not None:
        program.check(answer.output)
    if program.read is not None:
        return program.read(answer.output)
    assert program.unit == MS
    return answer.wall_ms
