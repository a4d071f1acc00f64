"""The statistics of the benchmark: medians with their range, and ratios within a round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """What is said of a series of numbers; the unit is theirs."""

    median: float
    low: float
    high: float
    count: int


def summarize(values: Sequence[float]) -> Summary:
    """Median, minimum and maximum of *values*; ValueError when there are none."""
    if not values:
        raise ValueError("no values to summarize")
    return Summary(statistics.median(values), min(values), max(values), len(values))


def pairwise_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours divided by theirs, round by round.

    Both of a round were taken within a moment of each other, so what else the machine did then
    slowed both: the ratio drifts less than the ratio of two medians. ValueError when the series
    do not pair up, or when something took no time at all.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} rounds against {len(theirs)}")
    if any(value <= 0 for value in theirs):
        raise ValueError("a duration of zero has no ratio")
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def steps_between(marks: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """How long each phase took, given when each was reached: the first counts from zero."""
    times = [0.0, *(at for _, at in marks)]
    return [(name, at - before) for (name, at), before in zip(marks, times, strict=False)]


def number(value: float) -> str:
    """*value* with about three significant digits: 3.47, 34.7, 347."""
    for limit, digits in ((10, 2), (100, 1)):
        if abs(round(value, digits)) < limit:
            return f"{value:.{digits}f}"
    return f"{value:.0f}"


def spread(summary: Summary) -> str:
    """`median (low–high)`; the median alone where there is one value only."""
    if summary.count == 1:
        return number(summary.median)
    return f"{number(summary.median)} ({number(summary.low)}–{number(summary.high)})"
