"""A door without an engine: a container of `cloche run`, whose root is a folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from bench.compare import measure
from bench.doors import Door
from bench.processes import Process, all_processes
from bench.programs import Program
from bench.runtimes import CLOCHE, Runtime, environment
from bench.timing import BenchError, Command
from cloche.model.spec import default_spec

_ID = "bench"
_MEMORY_LIMIT = 400_000_000  # the shape of 512 MiB
_SERVER = "cloche-files"


class BundleDoor(Door):
    """The container; *folder* is for its bundle and cloche's state. *patience* is in seconds."""

    def __init__(self, files: str, folder: Path, root: Path, cloche: Path, patience: float) -> None:
        super().__init__(files, peer="")
        variables = {**environment(), "CLOCHE_FILES": files}
        self.runtime = Runtime(CLOCHE, str(cloche), folder / "c", (), variables)
        self._bundle = _write_bundle(folder / f"bundle-{files}", root)
        self._patience = patience

    def start(self) -> list[str]:
        """`cloche run`, then `cloche exec`."""
        argv = self.runtime.run(self._bundle, _ID, detach=True)
        Command(argv, self.runtime.environment).finish(self._patience)
        return self.runtime.command("exec", _ID, "sh")

    def stop(self) -> None:
        """`cloche delete`."""
        self.runtime.delete(_ID)

    def file_server(self) -> int:
        """The pid of the container's file server; BenchError when it has none."""
        supervisor = int(self.runtime.state(_ID)["pid"])
        for process in _descendants(supervisor, all_processes()):
            if process.command.startswith(_SERVER):
                return process.pid
        raise BenchError(f"{_SERVER} does not run")


def _descendants(pid: int, processes: list[Process]) -> list[Process]:
    children = [process for process in processes if process.parent == pid]
    return children + [found for child in children for found in _descendants(child.pid, processes)]


def _write_bundle(bundle: Path, root: Path) -> Path:
    config: dict[str, Any] = {**default_spec()}
    config["root"] = {"path": str(root), "readonly": False}
    config["process"].update(args=["sleep", "infinity"], terminal=False)
    config["linux"]["resources"]["memory"] = {"limit": _MEMORY_LIMIT}
    bundle.mkdir(parents=True)
    (bundle / "config.json").write_text(json.dumps(config))
    return bundle


def run_up_to(program: Program, door: Door) -> Program:
    """Have *door* do all that comes before a run of *program* that counts; what is left."""
    if program.once:
        door.run(program.once, program.seconds)
    if program.warm:
        measure(program, door)
    if program.before:
        door.run(program.before, program.seconds)
    return dataclasses.replace(program, before="")
