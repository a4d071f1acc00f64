"""The command line of `make bench-programs`, and its story: prepare, run the programs, report."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench import facts
from bench.compare import Budget, OnRound, compare
from bench.debian import make_archive
from bench.doors import ALL, open_doors, set_up
from bench.main import DEFAULT_OUTPUT, guarded, ignore_interruptions
from bench.options import add_outputs
from bench.program_report import ProgramResults, to_json, to_markdown
from bench.programs import PROGRAMS, Program
from bench.progress import Progress
from bench.runtimes import CLOCHE, clear_all, make_runtimes
from bench.sections import with_section
from bench.timing import BenchError
from cloche.model.config import load_settings

DEFAULT_ROUNDS = 3
DEFAULT_MINUTES = 13.0
_FACTS = ("Date", "CPU", "Accelerator", "cloche", "QEMU", "Guest kernel", "runsc", "Docker")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the programs; 0 when they were run, whatever came of it, 2 when they could not be."""
    options = _parse(argv)
    return guarded(lambda: _run(options))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/start.py programs",
        description="Run ordinary programs in containers of cloche, runc and runsc, in "
        "interleaved rounds, and write their section of the table. Must run as root, on a machine "
        "that does nothing else.",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=DEFAULT_ROUNDS,
        metavar="N",
        help="rounds (default %(default)s)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=DEFAULT_MINUTES,
        metavar="M",
        help="how long the programs may take together, without what is prepared once; slow ones "
        "make fewer rounds for it (default %(default)g)",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="programs whose names have this text (may be repeated)",
    )
    parser.add_argument(
        "--door", action="append", choices=ALL, help="this door only (may be repeated)"
    )
    parser.add_argument("--list", action="store_true", help="print the programs, run nothing")
    add_outputs(parser, "whose section is replaced", partial="--only or --door")
    options = parser.parse_args(argv)
    if options.output is None and not (options.only or options.door):
        options.output = DEFAULT_OUTPUT
    options.cloche = options.cloche.absolute()
    options.door = tuple(options.door or ALL)
    return options


def chosen(texts: Sequence[str]) -> list[Program]:
    """The programs whose names have one of *texts*, all without; BenchError when there is none."""
    found = [
        program
        for program in PROGRAMS
        if not texts or any(text.lower() in program.name.lower() for text in texts)
    ]
    if not found:
        raise BenchError(f"--only: no program is called like that; there are: {_names(PROGRAMS)}")
    return found


def _names(programs: Sequence[Program]) -> str:
    return "; ".join(program.name for program in programs)


def _run(options: argparse.Namespace) -> None:
    programs = chosen(options.only)
    if options.list:
        print("\n".join(program.name for program in programs))
        return
    _check(options)
    with _workspace() as workspace:
        found = _measure(workspace, programs, options)
    text = to_markdown(found)
    print(text)
    if options.output is not None:
        options.output.write_text(with_section(options.output.read_text(), text))
        print(f"bench: written to {options.output}", file=sys.stderr)
    if options.json is not None:
        options.json.write_text(to_json(found))


def _check(options: argparse.Namespace) -> None:
    if os.geteuid() != 0:
        raise BenchError("containers are run here: run it as root")
    if options.rounds < 1:
        raise BenchError("--rounds: at least one round is needed")
    if not os.access(options.cloche, os.X_OK):
        raise BenchError(f"{options.cloche}: no such command (`make test-deps` makes it)")
    if options.output is not None and not options.output.is_file():
        raise BenchError(f"{options.output}: not there: `make bench` writes it first")


@contextlib.contextmanager
def _workspace() -> Iterator[Path]:
    """A new folder on a disk, for Docker's data; gone in the end."""
    # A short path: sockets are made below it, whose names are limited to 108 bytes.
    workspace = Path(tempfile.mkdtemp(prefix="cloche-bench-", dir="/var/tmp"))
    try:
        yield workspace
    finally:
        ignore_interruptions()
        shutil.rmtree(workspace)


def _measure(
    workspace: Path, programs: Sequence[Program], options: argparse.Namespace
) -> ProgramResults:
    progress = Progress()
    runtimes = make_runtimes(workspace, options.cloche)
    with contextlib.ExitStack() as stack:
        stack.callback(clear_all, workspace, runtimes)
        progress.step("a Debian, unless there is one")
        archive = make_archive(Path(load_settings().data_root, "bench"))
        progress.step("cloche setup, and cloche's image of that Debian")
        broken = set_up(runtimes[CLOCHE], archive)
        progress.step("Docker")
        doors = stack.enter_context(open_doors(workspace, runtimes, archive, options.door))
        for door in doors:
            door.broken = broken.get(door.name, "")
        everything = facts.collect(runtimes)
        found = ProgramResults({name: everything[name] for name in _FACTS}, facts.load_average())
        began = time.monotonic()
        budget = Budget(options.rounds, began + options.minutes * 60)
        found.outcomes = compare(programs, doors, budget, _teller(progress))
        progress.done()
        found.seconds = time.monotonic() - began
        found.load_after = facts.load_average()
    return found


def _teller(progress: Progress) -> Callable[[Program], OnRound]:
    def tell(program: Program) -> OnRound:
        progress.step(program.name)
        return progress.round

    return tell
