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

from bench.compare import measure
from bench.doors import FILES, Door
from bench.kvm_view import KINDS, ROOT_VARIABLE
from bench.program_main import chosen, own_cloche
from bench.programs import Program
from bench.runtimes import CLOCHE, Runtime, environment
from bench.timing import BenchError, Command
from cloche.model.spec import default_spec
from kvm.outer.reporter import results_port

_COUNTERS = Path("/sys/kernel/debug/kvm")
_BUNDLE = Path("/run/bench/bundle")
# Everything is 10 to 40 times as slow here.
_PATIENCE = 40.0
_MEMORY_LIMIT = 400_000_000  # the shape of 512 MiB
_ID = "bench"


class BundleDoor(Door):
    """A container of `cloche run`, whose root is the Debian that was handed in."""

    def __init__(self, files: str) -> None:
        super().__init__(files, peer="")
        variables = {**environment(), "CLOCHE_FILES": files}
        self._runtime = Runtime(CLOCHE, str(own_cloche()), Path("/run/bench/c"), (), variables)

    def start(self) -> list[str]:
        """`cloche run`, then `cloche exec`."""
        argv = self._runtime.run(_BUNDLE, _ID, detach=True)
        Command(argv, self._runtime.environment).finish(60 * _PATIENCE)
        return self._runtime.command("exec", _ID, "sh")

    def stop(self) -> None:
        """`cloche delete`."""
        self._runtime.delete(_ID)


def main(argv: Sequence[str]) -> int:
    """Count what each program needs; what is found goes to the results port, a line each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--files", action="append", choices=FILES)
    options = parser.parse_args(argv)
    with results_port().open("wb", buffering=0) as port:
        _prepare()
        for files in options.files:
            door = BundleDoor(files)
            for program in chosen(options.only):
                found = {"name": program.name, "files": files, **_count(program, door)}
                port.write(json.dumps(found).encode() + b"\n")
            door.close()
        port.write(b"{}\n")
    return 0


def _prepare() -> None:
    subprocess.run(["mount", "-t", "debugfs", "debugfs", "/sys/kernel/debug"], check=True)
    subprocess.run([own_cloche(), "setup"], check=True, stdin=subprocess.DEVNULL)
    config: dict[str, Any] = {**default_spec()}
    config["root"] = {"path": os.environ[ROOT_VARIABLE], "readonly": False}
    config["process"].update(args=["sleep", "infinity"], terminal=False)
    config["linux"]["resources"]["memory"] = {"limit": _MEMORY_LIMIT}
    _BUNDLE.mkdir(parents=True)
    (_BUNDLE / "config.json").write_text(json.dumps(config))


def _count(program: Program, door: Door) -> dict[str, Any]:
    patient = dataclasses.replace(program, seconds=program.seconds * _PATIENCE)
    try:
        if patient.once:
            door.run(patient.once, patient.seconds)
        if patient.warm:
            measure(patient, door)
        if patient.before:
            door.run(patient.before, patient.seconds)
        before = _counters()
        measure(dataclasses.replace(patient, before=""), door)
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
