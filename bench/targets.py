"""The targets for speed and memory, and whether a run reached them: computed, never written."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from bench.memory import SUPERVISOR, TOGETHER
from bench.results import CROWD, DOCKER, EXEC, MEMORY, RUN, STATE, Results
from bench.runtimes import CLOCHE, RUNC, RUNSC
from bench.stats import pairwise_ratios

KIB_PER_MIB = 1024


class Unknown(Exception):
    """A number that a target needs was not measured; the message says why."""


@dataclass(frozen=True)
class Verdict:
    """A target, what was measured, and whether that is enough (None: not measured)."""

    target: str
    measured: str
    reached: bool | None

    @property
    def word(self) -> str:
        """`reached`, `not reached` or `not measured`."""
        return {True: "reached", False: "not reached", None: "not measured"}[self.reached]


def verdicts(results: Results) -> list[Verdict]:
    """One verdict a target."""
    checks: list[tuple[str, Callable[[Results], tuple[str, bool]]]] = [
        ("`run` of /bin/true: not above runsc's", _run_against_runsc),
        ("`run` of /bin/true, stretch: at most 120 ms", _run_stretch),
        ("`docker run --rm`: at most 1.7 × runc's", _ratio(DOCKER, 1.7)),
        ("`exec` of /bin/true: at most 3 × runc's", _ratio(EXEC, 3.0)),
        ("`state`: at most 3 × runc's", _ratio(STATE, 3.0)),
        ("idle container, all host processes: at most 80 MiB PSS", _memory(80, TOGETHER)),
        ("idle container, supervisor: at most 20 MiB PSS", _memory(20, SUPERVISOR)),
        ("20 containers side by side run and are cleaned up", _crowd),
    ]
    return [_verdict(target, check, results) for target, check in checks]


def _verdict(
    target: str, check: Callable[[Results], tuple[str, bool]], results: Results
) -> Verdict:
    try:
        measured, reached = check(results)
    except Unknown as reason:
        return Verdict(target, str(reason), None)
    return Verdict(target, measured, reached)


def _wall(results: Results, case: str, name: str) -> list[float]:
    if case not in results.series:
        raise Unknown(results.skipped.get(case, "not asked for"))
    series = results.series[case]
    times = series.wall(name)
    if not times:
        raise Unknown(f"{name}: {series.left_out.get(name, 'not measured')}")
    return times


def _run_against_runsc(results: Results) -> tuple[str, bool]:
    ours = statistics.median(_wall(results, RUN, CLOCHE))
    theirs = statistics.median(_wall(results, RUN, RUNSC))
    return f"{ours:.0f} ms against {theirs:.0f} ms", ours <= theirs


def _run_stretch(results: Results) -> tuple[str, bool]:
    ours = statistics.median(_wall(results, RUN, CLOCHE))
    return f"{ours:.0f} ms", ours <= 120


def _ratio(case: str, limit: float) -> Callable[[Results], tuple[str, bool]]:
    def check(results: Results) -> tuple[str, bool]:
        ours, theirs = _wall(results, case, CLOCHE), _wall(results, case, RUNC)
        ratio = statistics.median(pairwise_ratios(ours, theirs))
        return f"{ratio:.2f} ×", ratio <= limit

    return check


def _memory(limit_mib: int, role: str) -> Callable[[Results], tuple[str, bool]]:
    def check(results: Results) -> tuple[str, bool]:
        if results.memory is None:
            raise Unknown(results.skipped.get(MEMORY, "not asked for"))
        rounds = results.memory.rounds.get(CLOCHE, [])
        sizes = [usage[role].pss_kib / KIB_PER_MIB for usage in rounds if role in usage]
        if not sizes:
            raise Unknown(results.memory.left_out.get(CLOCHE, f"no {role} was found"))
        mib = statistics.median(sizes)
        return f"{mib:.1f} MiB", mib <= limit_mib

    return check


def _crowd(results: Results) -> tuple[str, bool]:
    crowd = results.crowd
    if crowd is None:
        raise Unknown(results.skipped.get(CROWD, "not asked for"))
    left = f"{len(crowd.left_over)} things left over" if crowd.left_over else "nothing left over"
    good = crowd.running == crowd.wanted and not crowd.left_over
    return f"{crowd.running} of {crowd.wanted} ran, {left}", good
