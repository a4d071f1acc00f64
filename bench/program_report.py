"""What came of the programs, as a section of docs/benchmarks.md: ratios first."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.compare import Outcome
from bench.doors import ALL, CLOCHES, DO, FILES
from bench.facts import Facts, busy_load
from bench.report import table
from bench.runtimes import RUNC, RUNSC
from bench.sections import PROGRAMS
from bench.stats import number, pairwise_ratios, summarize

_INTRODUCTION = """\
Written by `make bench-programs`: ordinary programs in running containers of one Debian, in turn
(A B C A B C …). `9p` and `fuse` are cloche under Docker with that value of `files`
([files.md](files.md)), `do` is `cloche do` (an erofs disk, and what is written stays in the VM's
memory; user-mode networking); runsc (gVisor, ptrace platform, the host's network stack) and runc
are under the same Docker.

### How many times as slow
A ratio is taken within each round, then its median. Of speeds it is the other one's by ours: 2 is
half as fast, as with times. `first` is the first run in that container.

"""
_NUMBERS = """\
### Times and speeds
`median (lowest–highest)` of the rounds. A time is from the writing of a command to a shell in the
container until its end is read from there. Speeds are what the programs themselves say (fio,
iperf3, redis-benchmark, pgbench).

"""
_TARGETS = """\
### Targets
For cloche with `files = fuse`.

"""
# Program, whom it is compared with, and how many times as slow it may be.
_AIMS = (
    ("Python start", RUNSC, 2.5),
    ("100 × fork and exec", RUNSC, 1.0),
    ("find /usr", RUNSC, 1.0),
    ("git init, add, commit", RUNSC, 1.0),
    ("2,000 small files, written", RUNSC, 1.0),
    ("2,000 small files, removed", RUNSC, 1.0),
    ("Python start", DO, 1.2),
    ("find /usr", DO, 1.2),
    ("git status", DO, 1.2),
)
_FUSE = FILES[-1]


@dataclass
class ProgramResults:
    """One run of the programs."""

    facts: Facts
    load_before: float
    load_after: float = 0.0
    seconds: float = 0.0
    outcomes: list[Outcome] = field(default_factory=list)


def to_json(results: ProgramResults) -> str:
    """All raw numbers."""
    return json.dumps(dataclasses.asdict(results), indent=1) + "\n"


def to_markdown(results: ProgramResults) -> str:
    """The section, its heading first."""
    parts = [
        f"{PROGRAMS}\n{_INTRODUCTION}{_ratios(results.outcomes)}",
        f"{_TARGETS}{_aims(results.outcomes)}",
        f"{_NUMBERS}{_numbers(results.outcomes)}",
        *_failures(results.outcomes),
        _when(results),
    ]
    return "\n".join(parts)


def slowness(outcome: Outcome, door: str, other: str) -> list[float]:
    """How many times as slow *outcome* is in *door* as in *other*, by round; [] without values."""
    ours, theirs = outcome.values.get(door, []), outcome.values.get(other, [])
    if not ours or not theirs:
        return []
    slow, quick = (theirs, ours) if outcome.higher_is_better else (ours, theirs)
    return pairwise_ratios(slow, quick)


def _ratios(outcomes: Sequence[Outcome]) -> str:
    pairs = [(door, RUNC) for door in (*CLOCHES, RUNSC)] + [(door, RUNSC) for door in CLOCHES]
    rows = []
    for outcome in outcomes:
        for title, either in _rows(outcome):
            rows.append([title, *(_ratio(either, door, other) for door, other in pairs)])
    return table(("", *(f"{door} ÷ {other}" for door, other in pairs)), rows)


def _rows(outcome: Outcome) -> list[tuple[str, Outcome]]:
    """The rows of *outcome*: first runs have one of their own, as if they were all there is."""
    rows = [(outcome.name, outcome)]
    if outcome.first:
        values = {door: [value] for door, value in outcome.first.items()}
        rows.insert(0, (f"{outcome.name}, first", dataclasses.replace(outcome, values=values)))
    return rows


def _ratio(outcome: Outcome, door: str, other: str) -> str:
    if door in outcome.failed:
        return "failed"
    found = slowness(outcome, door, other)
    return number(statistics.median(found)) if found else "–"


def _aims(outcomes: Sequence[Outcome]) -> str:
    by_name = {outcome.name: outcome for outcome in outcomes}
    rows = []
    for name, other, limit in _AIMS:
        target = f"{name}: at most {limit:g} × {other}'s"
        found = slowness(by_name[name], _FUSE, other) if name in by_name else []
        if not found:
            rows.append((target, "", "not measured"))
            continue
        median = statistics.median(found)
        word = "reached" if median <= limit else "not reached"
        rows.append((target, f"{number(median)} ×", word))
    return table(("target", "measured", ""), rows)


def _numbers(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for outcome in outcomes:
        for title, either in _rows(outcome):
            rounds = max((len(values) for values in either.values.values()), default=0)
            cells = [_number(either, door) for door in ALL]
            rows.append([title, outcome.unit, *cells, str(rounds)])
    return table(("", "", *ALL, "rounds"), rows)


def _number(outcome: Outcome, door: str) -> str:
    if door in outcome.failed:
        return "failed"
    values = outcome.values.get(door)
    if not values:
        return "–"
    found = summarize(values)
    median, low, high = map(_grouped, (found.median, found.low, found.high))
    return median if found.count == 1 else f"{median} ({low}–{high})"


def _grouped(value: float) -> str:
    """As `number`, with a comma in thousands: operations a second can be many."""
    return number(value) if value < 1000 else f"{value:,.0f}"


def _failures(outcomes: Sequence[Outcome]) -> list[str]:
    """Who failed and why; a reason that several programs share in a door is told once."""
    programs: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        for door, reason in outcome.failed.items():
            programs.setdefault((door, " ".join(reason.split())), []).append(outcome.name)
    lines = [
        f"- {door}: {'; '.join(names)}: {reason}\n" for (door, reason), names in programs.items()
    ]
    return ["### Failed\n" + "".join(lines)] if lines else []


def _when(results: ProgramResults) -> str:
    load = f"{results.load_before:.2f} before, {results.load_after:.2f} after"
    minutes = f"{results.seconds / 60:.0f} minutes"
    rows = [*results.facts.items(), ("Load average (1 min)", load), ("The programs took", minutes)]
    text = f"### Measured on\n{table(('', ''), rows)}"
    if results.load_before > busy_load():
        text += (
            "\n**The machine was busy before the run began: times are too long, only ratios are "
            "worth something.**\n"
        )
    return text
