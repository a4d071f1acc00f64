"""Rounds: every contender once, in turn, so that what the machine does else hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bench.timing import BenchError, Sample

Contenders = Mapping[str, Callable[[], Sample]]


@dataclass
class Series:
    """The samples of one case: the n-th of every contender are of the same round.

    *left_out* has the contenders that are not in it, and why.
    """

    title: str
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def wall(self, name: str) -> list[float]:
        """Wall times of *name* in ms; empty when it was left out."""
        return [sample.wall_ms for sample in self.samples.get(name, [])]

    def cpu(self, name: str) -> list[float]:
        """CPU times of *name* in ms; empty when they are not known."""
        times = [sample.cpu_ms for sample in self.samples.get(name, [])]
        return [cpu for cpu in times if cpu is not None]

    def drop(self, name: str, reason: str) -> None:
        """Leave *name* out, its samples too: a series with a gap pairs with no other."""
        self.samples.pop(name, None)
        self.left_out[name] = reason


@dataclass(frozen=True)
class Limits:
    """How many rounds are wanted, and how long they may take: the first to be reached ends them.

    *seconds* is checked between rounds; at least one round is made.
    """

    rounds: int
    seconds: float


def interleave(
    series: Series, contenders: Contenders, limits: Limits, on_round: Callable[[int, int], None]
) -> None:
    """Fill *series* with rounds of *contenders*; one that fails is left out from then on.

    A first round is not counted: it brings files into the page cache and makes what is made once.
    """
    began = time.monotonic()
    running = dict(contenders)
    series.samples.update({name: [] for name in running})
    _round(series, running)
    for name in series.samples:
        series.samples[name].clear()
    for done in range(1, limits.rounds + 1):
        if not running:
            return
        _round(series, running)
        on_round(done, limits.rounds)
        if time.monotonic() - began > limits.seconds:
            return


def _round(series: Series, running: dict[str, Callable[[], Sample]]) -> None:
    for name, measure in list(running.items()):
        try:
            series.samples[name].append(measure())
        except BenchError as error:
            del running[name]
            series.drop(name, str(error))
