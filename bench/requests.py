"""How many requests programs make to the file server: its answers are counted, by strace."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.bundle_door import BundleDoor, run_up_to
from bench.compare import measure
from bench.programs import Program
from bench.timing import BenchError

_PATIENCE = 120.0


def count_requests(
    programs: Sequence[Program], folder: Path, root: Path, cloche: Path
) -> dict[str, int | str]:
    """The answers that a warm run of each gets; a text says why there are none."""
    if shutil.which("strace") is None:
        raise BenchError("strace is not installed: apt-get install strace")
    door = BundleDoor("fuse", folder, root, cloche, _PATIENCE)
    found: dict[str, int | str] = {}
    try:
        for program in programs:
            try:
                found[program.name] = _count(program, door, folder / "calls")
            except (BenchError, ValueError) as error:
                found[program.name] = str(error)
    finally:
        door.close()
    return found


def _count(program: Program, door: BundleDoor, calls: Path) -> int:
    left = run_up_to(program, door)
    with _traced(door.file_server(), calls):
        measure(left, door)
    return answers_in(calls.read_text(errors="replace"))


def answers_in(calls: str) -> int:
    """The calls of sendto(2) in *calls*, as strace has them; one that was begun counts once."""
    return sum("sendto(" in line for line in calls.splitlines())


@contextlib.contextmanager
def _traced(pid: int, calls: Path) -> Iterator[None]:
    """Have strace write what *pid* sends to *calls* while the block runs."""
    argv = ["strace", "-f", "-s", "0", "-e", "trace=sendto", "-e", "signal=none"]
    tracer = subprocess.Popen(
        [*argv, "-o", str(calls), "-p", str(pid)], stderr=subprocess.PIPE, text=True
    )
    assert tracer.stderr is not None
    with tracer:
        try:
            said = tracer.stderr.readline()  # comes when it is attached
            if "attached" not in said:
                raise BenchError(said.strip())
            yield
        finally:
            tracer.send_signal(signal.SIGINT)
