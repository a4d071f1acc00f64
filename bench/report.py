"""The results as Markdown (docs/benchmarks.md) and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from bench.facts import busy_load
from bench.memory import SETTLE_S, TOGETHER, Crowd, Idle
from bench.processes import Usage
from bench.results import Results
from bench.rounds import Series
from bench.runtimes import CLOCHE, COLD, NAMES, RESTORED, RUNC, RUNSC
from bench.stats import pairwise_ratios, spread, steps_between, summarize
from bench.targets import verdicts

_INTRODUCTION = """\
# Benchmarks

Written by `make bench` (`bench/start.py`), which measures everything in one run, but for the
programs, whose section `make bench-programs` writes; edits are lost. The contenders take turns
(A B C A B C …), so that whatever else the machine does hits all alike. Numbers are
`median (lowest–highest)`; a ratio is taken within each round, then its median.
"""
_HOW = """\
## How it is measured
- A time is that of a whole process, from its spawn to its end (CLOCK_MONOTONIC). `run` goes on
  until the container has ended and is removed. A first round of each case is not counted.
- `cloche` is cloche as `cloche setup` leaves it: without KVM a start thaws a frozen QEMU, with KVM
  it restores a template. `cloche restored` is cloche with CLOCHE_FREEZE=off: always a template;
  `cloche cold` with CLOCHE_TEMPLATE=off: it boots the guest kernel for every start.
- All run the same bundle: static busybox, five namespaces, a read-only root, no network but a
  loopback. runsc (gVisor, ptrace platform) is called with `--network=none --ignore-cgroups`.
- CPU time is what the command and the descendants that it waited for used, user and system
  together; for `exec` the container's own host processes (supervisor and QEMU; gVisor's sandbox
  and gofer) are counted too. For `docker run` it is not told: dockerd, containerd and the shim do
  the work there.
- `exec`, `state` and `docker run` are timed for `cloche` as its users have it only; how a VM came
  up adds to the third what it adds to `run`.
"""
_HOW_STARTED = {CLOCHE: "Thawed", RESTORED: "From the template", COLD: "Cold boot"}
_MEMORY = """\
## Memory of an idle container
MiB on the host, {seconds:g} s after the start of a container of default size that sleeps;
containers of each contender: {count}. `payload` is the container's own process (for runsc the
stubs that it runs in); with cloche it lives inside QEMU, with the guest's kernel. An engine's shim
is the same for all and is not counted. PSS (/proc/PID/smaps_rollup) shares a page's size among all
processes on the machine that map it; `alone` counts every page once, as if nothing else ran;
`private` is what one process only maps.

"""
_MIB = 1024


def to_json(results: Results) -> str:
    """All raw numbers, and the verdicts drawn from them."""
    document = dataclasses.asdict(results)
    document["targets"] = [dataclasses.asdict(verdict) for verdict in verdicts(results)]
    return json.dumps(document, indent=1) + "\n"


def to_markdown(results: Results) -> str:
    """The document."""
    parts = [
        _INTRODUCTION,
        _targets(results),
        *([_times(results)] if results.series else []),
        *([_phases(results)] if results.phases else []),
        *([_memory(results.memory)] if results.memory else []),
        *([_crowd(results.crowd)] if results.crowd else []),
        *_omissions(results),
        _machine(results),
        _HOW,
    ]
    return "\n".join(parts)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    cells = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(_cell(cell) for cell in row)} |\n" for row in cells)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _targets(results: Results) -> str:
    rows = [(verdict.target, verdict.measured, verdict.word) for verdict in verdicts(results)]
    return "## Targets\n" + table(("target", "measured", ""), rows)


def _times(results: Results) -> str:
    series = list(results.series.values())
    ratios = [f"cloche ÷ {name}" for name in (RUNC, RUNSC)]
    rows = [_time_row(entry) for entry in series]
    text = "## Times\nWall time in ms.\n\n" + table(("", *NAMES, *ratios, "rounds"), rows)
    cpu = [(entry.title, *(_summary(entry.cpu(name)) for name in NAMES)) for entry in series]
    return text + "\nCPU time in ms, user and system.\n\n" + table(("", *NAMES), cpu)


def _time_row(series: Series) -> list[str]:
    times = [_summary(series.wall(name)) for name in NAMES]
    ratios = [_ratio(series, name) for name in (RUNC, RUNSC)]
    rounds = max((len(samples) for samples in series.samples.values()), default=0)
    return [series.title, *times, *ratios, str(rounds)]


def _summary(values: Sequence[float]) -> str:
    return spread(summarize(values)) if values else "–"


def _ratio(series: Series, other: str) -> str:
    ours, theirs = series.wall(CLOCHE), series.wall(other)
    return spread(summarize(pairwise_ratios(ours, theirs))) if ours and theirs else "–"


def _phases(results: Results) -> str:
    text = (
        "## Phases of a start\nFrom `cloche --timings FILE run` of /bin/true: when a phase was "
        "reached, in ms since the first,\nand how long it took since the one before.\n"
    )
    for phases in results.phases:
        names = [name for name, _ in phases.marks[0]]
        reached = {name: [dict(marks)[name] for marks in phases.marks] for name in names}
        took = [dict(steps_between(marks)) for marks in phases.marks]
        rows = [
            (name, _summary(reached[name]), _summary([steps[name] for steps in took]))
            for name in names
        ]
        starts = zip(phases.total, phases.marks, strict=True)
        rest = [total - marks[-1][1] for total, marks in starts]
        rows.append(("before the first and after the last phase", "", _summary(rest)))
        rows.append(("the whole command", "", _summary(phases.total)))
        text += f"\n{_HOW_STARTED[phases.name]}, {len(phases.marks)} starts:\n\n"
        text += table(("phase", "reached at", "took"), rows)
    return text


def _memory(idle: Idle) -> str:
    rows = []
    for name, rounds in idle.rounds.items():
        roles = [role for role in rounds[0] if role != TOGETHER or len(rounds[0]) > 2]
        rows += [[name, role, *_usages(rounds, role)] for role in roles]
    count = max((len(rounds) for rounds in idle.rounds.values()), default=0)
    text = _MEMORY.format(seconds=SETTLE_S, count=count)
    if idle.other_vms:
        text += (
            f"**Other VMs on the machine: {idle.other_vms}. What they share with the measured one "
            "makes its PSS smaller.**\n\n"
        )
    return text + table(("", "processes", "PSS", "alone", "private"), rows)


def _usages(rounds: Sequence[dict[str, Usage]], role: str) -> list[str]:
    used = [usage[role] for usage in rounds if role in usage]
    columns = [
        [usage.pss_kib for usage in used],
        [usage.alone_kib for usage in used],
        [usage.private_kib for usage in used],
    ]
    return [_summary([kib / _MIB for kib in column]) for column in columns]


def _crowd(crowd: Crowd) -> str:
    total = crowd.usage[TOGETHER].pss_kib / _MIB
    parts = ", ".join(
        f"{role} {usage.pss_kib / _MIB:.0f}"
        for role, usage in crowd.usage.items()
        if role != TOGETHER
    )
    rows = [
        ("running", f"{crowd.running} of {crowd.wanted}"),
        ("started at once, all run after", f"{crowd.seconds_to_run:.2f} s"),
        ("PSS of all host processes", f"{total:.0f} MiB ({parts})"),
        ("PSS a container", f"{total / max(1, crowd.running):.1f} MiB"),
        ("removed, one after the other, in", f"{crowd.seconds_to_remove:.2f} s"),
        ("left over afterwards", "; ".join(crowd.left_over) or "nothing"),
    ]
    if crowd.errors:
        rows.append((f"did not start: {len(crowd.errors)}; the first", crowd.errors[0]))
    return f"## {crowd.wanted} containers side by side\n" + table(("", ""), rows)


def _omissions(results: Results) -> list[str]:
    lines = [f"- {case}: {reason}" for case, reason in results.skipped.items()]
    left_out = [(entry.title, entry.left_out) for entry in results.series.values()]
    if results.memory:
        left_out.append(("memory", results.memory.left_out))
    lines += [
        f"- {title}: {name}: {reason}"
        for title, reasons in left_out
        for name, reason in reasons.items()
    ]
    lines += [f"- {case}: not asked for" for case in results.not_asked()]
    return ["## Not measured\n" + "\n".join(lines) + "\n"] if lines else []


def _machine(results: Results) -> str:
    rows = list(results.facts.items())
    load = f"{results.load_before:.2f} before, {results.load_after:.2f} after"
    rows.append(("Load average (1 min)", load))
    rows.append(("The whole run took", f"{results.seconds:.0f} s"))
    text = "## Machine and versions\n" + table(("", ""), rows)
    if results.load_before > busy_load():
        text += (
            "\n**The machine was busy before the run began: times are too long, only ratios are "
            "worth something.**\n"
        )
    return text
