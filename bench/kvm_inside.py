"""In the outer VM of `make test-kvm`: runs programs in a container of cloche, and counts exits."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.bundle_door import BundleDoor, run_up_to
from bench.compare import measure
from bench.doors import FILES
from bench.kvm_view import KINDS, ROOT_VARIABLE
from bench.options import own_cloche
from bench.program_main import chosen
from bench.programs import Program
from bench.timing import BenchError
from kvm.outer.reporter import results_port

_COUNTERS = Path("/sys/kernel/debug/kvm")
_FOLDER = Path("/run/bench")
# Everything is 10 to 40 times as slow here.
_PATIENCE = 40.0
_START_SECONDS = 60 * _PATIENCE


def main(argv: Sequence[str]) -> int:
    """Count what each program needs; what is found goes to the results port, a line each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--files", action="append", choices=FILES)
    options = parser.parse_args(argv)
    root = Path(os.environ[ROOT_VARIABLE])
    with results_port().open("wb", buffering=0) as port:
        subprocess.run(["mount", "-t", "debugfs", "debugfs", "/sys/kernel/debug"], check=True)
        subprocess.run([own_cloche(), "setup"], check=True, stdin=subprocess.DEVNULL)
        for files in options.files:
            door = BundleDoor(files, _FOLDER, root, own_cloche(), _START_SECONDS)
            for program in chosen(options.only):
                found = {"name": program.name, "files": files, **_count(program, door)}
                port.write(json.dumps(found).encode() + b"\n")
            door.close()
        port.write(b"{}\n")
    return 0


def _count(program: Program, door: BundleDoor) -> dict[str, Any]:
    patient = dataclasses.replace(program, seconds=program.seconds * _PATIENCE)
    try:
        left = run_up_to(patient, door)
        before = _counters()
        measure(left, door)
        after = _counters()
    except (BenchError, ValueError) as error:
        return {"failed": str(error)}
    return {"exits": {kind: after[kind] - before[kind] for kind in KINDS}}


def _counters() -> dict[str, int]:
    """The sum over all VMs of each kind of exit."""
    return {
        kind: sum(int((_COUNTERS / name).read_text()) for name in names)
        for kind, names in KINDS.items()
    }
