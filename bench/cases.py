"""The timed cases on the runtimes' own command lines: `run`, `exec`, `state`, phases of a start."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.bundle import Bundles
from bench.progress import Progress
from bench.rounds import Limits, Series, interleave
from bench.runtimes import CLOCHE, ID_PREFIX, NAMES, RUNC, RUNSC, Runtime, missing
from bench.timing import BenchError, Sample, cpu_ns, timed

LIVE = (CLOCHE, RUNC, RUNSC)
"""Contenders of the cases on a running container: cloche as its users have it."""

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Bench:
    """What every case needs."""

    runtimes: dict[str, Runtime]
    bundles: Bundles
    workspace: Path
    progress: Progress


def new_id() -> str:
    """A container id that was not used yet, and that no other benchmark uses now."""
    return f"{ID_PREFIX}{next(_numbers)}"


def present(bench: Bench, series: Series, names: tuple[str, ...] = NAMES) -> list[Runtime]:
    """Those of the contenders *names* that are installed; *series* notes the others."""
    found = []
    for name in names:
        reason = missing(bench.runtimes[name])
        if reason:
            series.left_out[name] = reason
        else:
            found.append(bench.runtimes[name])
    return found


def time_run(bench: Bench, limits: Limits) -> Series:
    """`run` of /bin/true, from the command's start to its end."""
    series = Series("run /bin/true")
    contenders = {
        runtime.name: _runner(runtime, bench.bundles.short) for runtime in present(bench, series)
    }
    interleave(series, contenders, limits, bench.progress.round)
    return series


def _runner(runtime: Runtime, bundle: Path) -> Callable[[], Sample]:
    def measure() -> Sample:
        container = new_id()
        try:
            return timed(runtime.run(bundle, container), runtime.environment)
        except BenchError:
            runtime.delete(container)
            raise

    return measure


def time_exec(bench: Bench, limits: Limits) -> Series:
    """`exec` of /bin/true in a running container.

    CPU time includes what the container's own processes on the host used meanwhile.
    """
    series = Series("exec /bin/true")
    with _idle_containers(bench, series) as idle:
        contenders = {name: _executor(bench.runtimes[name], idle[name]) for name in idle}
        interleave(series, contenders, limits, bench.progress.round)
    return series


def _executor(runtime: Runtime, container: str) -> Callable[[], Sample]:
    pids = [process.pid for process in runtime.processes(container)]
    argv = runtime.command("exec", container, "/bin/true")

    def measure() -> Sample:
        before = cpu_ns(pids)
        sample = timed(argv, runtime.environment)
        behind = (cpu_ns(pids) - before) / 1e6
        return Sample(sample.wall_ms, (sample.cpu_ms or 0.0) + behind)

    return measure


def time_state(bench: Bench, limits: Limits) -> Series:
    """`state` of a running container."""
    series = Series("state")
    with _idle_containers(bench, series) as idle:
        contenders = {name: _asker(bench.runtimes[name], idle[name]) for name in idle}
        interleave(series, contenders, limits, bench.progress.round)
    return series


def _asker(runtime: Runtime, container: str) -> Callable[[], Sample]:
    argv = runtime.command("state", container)
    return lambda: timed(argv, runtime.environment)


@contextlib.contextmanager
def _idle_containers(bench: Bench, series: Series) -> Iterator[dict[str, str]]:
    """A running container of each contender, by its name; *series* notes those that fail."""
    with contextlib.ExitStack() as stack:
        idle = {}
        for runtime in present(bench, series, LIVE):
            try:
                idle[runtime.name] = stack.enter_context(idle_container(bench, runtime))
            except BenchError as error:
                series.left_out[runtime.name] = str(error)
        yield idle


@contextlib.contextmanager
def idle_container(bench: Bench, runtime: Runtime) -> Iterator[str]:
    """A container that sleeps; its id. BenchError when it does not start."""
    container = new_id()
    try:
        timed(runtime.run(bench.bundles.idle, container, detach=True), runtime.environment)
        yield container
    finally:
        runtime.delete(container)


@dataclass(frozen=True)
class Phases:
    """When a start reached its phases, in ms since QEMU was asked for; one entry per round.

    *name* is the contender; *total* is the wall time of the whole command in ms.
    """

    name: str
    marks: list[list[tuple[str, float]]]
    total: list[float]


def time_phases(bench: Bench, limits: Limits, name: str = CLOCHE) -> Phases:
    """`cloche --timings run` of /bin/true, one start after the other."""
    runtime = bench.runtimes[name]
    file = bench.workspace / "timings.json"
    marks: list[list[tuple[str, float]]] = []

    def measure() -> Sample:
        container = new_id()
        argv = runtime.run(bench.bundles.short, container)
        argv[1:1] = ["--timings", str(file)]
        sample = timed(argv, runtime.environment)
        phases: dict[str, float] = json.loads(file.read_text())
        marks.append(list(phases.items()))
        return sample

    series = Series("phases")
    interleave(series, {name: measure}, limits, bench.progress.round)
    if series.left_out:
        raise BenchError(series.left_out[name])
    return Phases(name, marks[1:], series.wall(name))
