"""The command line of the benchmark, and its story: prepare, measure case by case, report."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from bench import facts, report, results
from bench.bundle import make_bundles
from bench.cases import Bench, time_exec, time_phases, time_run, time_state
from bench.dockers import time_docker
from bench.memory import measure_crowd, measure_idle
from bench.options import add_outputs
from bench.progress import Progress
from bench.results import CROWD, MEMORY, PHASES, Results
from bench.rounds import Limits
from bench.runtimes import CLOCHE, COLD, RESTORED, clear_all, make_runtimes
from bench.sections import KVM, PROGRAMS, section_of, with_section
from bench.timing import BenchError, timed

REPOSITORY = Path(__file__).resolve().parents[1]
DEFAULT_OUTPUT = REPOSITORY / "docs" / "benchmarks.md"
DEFAULT_RUNS, QUICK_RUNS = 20, 5
MEMORY_ROUNDS, QUICK_MEMORY_ROUNDS = 5, 1
COLD_PHASE_ROUNDS = 3
# Seconds after which a case makes no further round; together less than six minutes.
_TIMED = {
    results.RUN: (time_run, 110.0),
    results.EXEC: (time_exec, 30.0),
    results.STATE: (time_state, 20.0),
    results.DOCKER: (time_docker, 60.0),
}
_PHASES_SECONDS = 20.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when it ran, whatever it found, 2 when it could not."""
    options = _parse(argv)
    return guarded(lambda: _run(options))


def guarded(run: Callable[[], None]) -> int:
    """The exit status of *run*; an interruption or a BenchError ends it with what it cleans up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        run()
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    _check(options)
    with _prepared(options.cloche) as bench:
        found = _measure(bench, options)
    _write(found, options)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/start.py",
        description="Measure cloche beside runc and runsc, in interleaved rounds, and write the "
        "table. Must run as root, on a machine that does nothing else.",
    )
    parser.add_argument("--runs", type=int, metavar="N", help=f"rounds (default {DEFAULT_RUNS})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_RUNS} rounds, for a look")
    parser.add_argument(
        "--only", action="append", choices=results.ALL, help="this case only (may be repeated)"
    )
    add_outputs(parser, "where the table goes", partial="--quick or --only")
    options = parser.parse_args(argv)
    options.quick_look = options.quick or bool(options.only)
    if options.runs is None:
        options.runs = QUICK_RUNS if options.quick else DEFAULT_RUNS
    options.only = options.only or list(results.ALL)
    if options.output is None and not options.quick_look:
        options.output = DEFAULT_OUTPUT
    options.cloche = options.cloche.absolute()
    return options


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    ignore_interruptions()
    raise KeyboardInterrupt


def ignore_interruptions() -> None:
    """From now on: what was started is to be cleaned up whatever comes after."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _check(options: argparse.Namespace) -> None:
    if os.geteuid() != 0:
        raise BenchError("containers are run here: run it as root")
    if options.runs < 1:
        raise BenchError("--runs: at least one round is needed")
    if not os.access(options.cloche, os.X_OK):
        raise BenchError(f"{options.cloche}: no such command (`make test-deps` makes it)")
    for path in (options.output, options.json):
        if path is not None and not path.absolute().parent.is_dir():
            raise BenchError(f"{path}: its folder does not exist")


@contextlib.contextmanager
def _prepared(cloche: Path) -> Iterator[Bench]:
    """A workspace with bundles and the contenders' state; everything in it ends with it."""
    # A short path: sockets are made below it, whose names are limited to 108 bytes.
    workspace = Path(tempfile.mkdtemp(prefix="cloche-bench-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, workspace)
        runtimes = make_runtimes(workspace, cloche)
        stack.callback(clear_all, workspace, runtimes)
        bench = Bench(runtimes, make_bundles(workspace / "b"), workspace, Progress())
        bench.progress.step("cloche setup")
        _set_up(bench)
        bench.progress.done()
        yield bench


def _set_up(bench: Bench) -> None:
    """Have guest and template made before anything is timed; BenchError when that fails."""
    runtime = bench.runtimes[CLOCHE]
    timed([runtime.program, "setup"], runtime.environment)


def _measure(bench: Bench, options: argparse.Namespace) -> Results:
    began = time.monotonic()
    found = Results(facts.collect(bench.runtimes), facts.load_average())
    if found.load_before > facts.busy_load():
        bench.progress.note(f"the machine is busy (load average {found.load_before:.2f})")
    for case in options.only:
        bench.progress.step(case)
        try:
            _measure_case(bench, found, case, options)
        except BenchError as error:
            found.skipped[case] = str(error)
            bench.progress.done(f"left out: {error}")
        else:
            bench.progress.done()
    found.load_after = facts.load_average()
    found.seconds = time.monotonic() - began
    return found


def _measure_case(bench: Bench, found: Results, case: str, options: argparse.Namespace) -> None:
    if case == PHASES:
        limits = Limits(options.runs, _PHASES_SECONDS)
        found.phases += [time_phases(bench, limits, name) for name in (CLOCHE, RESTORED)]
        cold = Limits(min(options.runs, COLD_PHASE_ROUNDS), _PHASES_SECONDS)
        found.phases.append(time_phases(bench, cold, COLD))
    elif case == MEMORY:
        rounds = QUICK_MEMORY_ROUNDS if options.quick else MEMORY_ROUNDS
        found.memory = measure_idle(bench, rounds)
    elif case == CROWD:
        found.crowd = measure_crowd(bench)
    else:
        measure, seconds = _TIMED[case]
        found.series[case] = measure(bench, Limits(options.runs, seconds))


def _write(found: Results, options: argparse.Namespace) -> None:
    text = report.to_markdown(found)
    print(text)
    if options.output is not None:
        before = options.output.read_text() if options.output.exists() else ""
        for heading in (PROGRAMS, KVM):
            text = with_section(text, section_of(before, heading))
        options.output.write_text(text)
        print(f"bench: written to {options.output}", file=sys.stderr)
    if options.json is not None:
        options.json.write_text(report.to_json(found))
        print(f"bench: raw numbers in {options.json}", file=sys.stderr)
