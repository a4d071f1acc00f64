"""What the programs ask of KVM: exits, counted in the outer VM of `make test-kvm`.

Times mean nothing there, but how often a program leaves the guest carries over to hardware. This
side boots the outer VM; what runs in it is `bench.kvm_inside`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.debian import make_archive
from bench.doors import FILES
from bench.main import DEFAULT_OUTPUT, REPOSITORY, guarded
from bench.options import own_cloche
from bench.program_main import chosen
from bench.progress import Progress
from bench.report import table
from bench.requests import count_requests
from bench.sections import KVM, with_section
from bench.timing import BenchError
from cloche.base.errors import ClocheError
from cloche.model.config import load_settings
from kvm.outer.kernel import prepare_kernel
from kvm.outer.relay import vm_environment
from kvm.outer.vm import outer_vm

ROOT_VARIABLE = "BENCH_ROOT"
"""Where the Debian is in the outer VM."""
INSIDE = "kvm-inside"
"""The word that has `bench/start.py` do what is to be done in the outer VM."""
# Those whose work is of a kind of its own, and that are done in minutes there.
DEFAULT_PROGRAMS = (
    *("Python start", "100 × fork", "git", "gcc", "tar", "small files", "SQLite", "stdout"),
)
KINDS = {
    "all": ("exits",),
    "registers": ("io_exits", "mmio_exits"),
    "pages": ("pf_taken",),
}
"""The columns, and the counters of /sys/kernel/debug/kvm that each is the sum of."""

_INTRODUCTION = """\
Written by `make bench-kvm`. How often each program leaves its VM, counted in the outer VM of
`make test-kvm` ([kvm.md](kvm.md)), a warm run each, for both values of `files`. `registers` are
accesses to a device's registers that QEMU serves (requests to the file server and output among
them), `pages` faults that KVM handles. `all` has the timer's exits too, of which slow motion makes
more than there are on hardware. `requests` are the file server's answers to such a run with `fuse`,
counted on this machine without KVM: there are as many with it.

"""


@dataclass
class Counted:
    """The exits of one program by value of `files`, named as in `KINDS`; or why there are none.

    *requests* are those to the file server.
    """

    name: str
    exits: dict[str, dict[str, int]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    requests: int | str = "–"


def main(argv: Sequence[str] | None = None) -> int:
    """Count; 0 when that was done, whatever came of it, 2 when it could not be."""
    parser = argparse.ArgumentParser(prog="bench/start.py kvm", description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="TEXT")
    parser.add_argument("--files", action="append", choices=FILES)
    parser.add_argument("--minutes", type=float, default=60.0, metavar="M")
    parser.add_argument("--output", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    if options.output is None and not (options.only or options.files):
        options.output = DEFAULT_OUTPUT
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    texts = options.only or DEFAULT_PROGRAMS
    words = [f"--only={text}" for text in texts]
    words += [f"--files={files}" for files in options.files or FILES]
    cache = Path(load_settings().data_root, "bench")
    progress = Progress()
    progress.step("a Debian, unless there is one")
    try:
        with _unpacked(make_archive(cache)) as root:
            counted = _count(words, root, progress, options.minutes * 60)
            progress.step("requests to the file server")
            requests = count_requests(chosen(texts), root.parent / "r", root, own_cloche())
        for one in counted:
            one.requests = requests[one.name]
        text = to_markdown(counted)
    except ClocheError as error:
        raise BenchError(str(error)) from None
    print(text)
    if options.output is not None:
        options.output.write_text(with_section(options.output.read_text(), text))


def _count(words: Sequence[str], root: Path, progress: Progress, seconds: float) -> list[Counted]:
    """What `bench.kvm_inside` with *words* finds; no line of it may take longer than *seconds*."""
    counted: dict[str, Counted] = {}
    command = [sys.executable, str(REPOSITORY / "bench/start.py"), INSIDE, *words]
    cache = Path(load_settings().data_root, "bench")
    kernel = prepare_kernel(cache / "outer-kernel", _Report(progress))
    progress.step("the outer VM")
    with outer_vm(kernel, REPOSITORY, command, _environment(root)) as vm:
        vm.results.settimeout(seconds)
        try:
            for line in vm.results.makefile("rb"):
                message = json.loads(line)
                if not message:
                    return list(counted.values())
                _take(message, counted)
                progress.step(f"after {message['name']}, {message['files']}")
        except OSError as error:
            raise BenchError(f"outer VM: {error}; its console: {vm.console_tail()}") from None
        raise BenchError(f"outer VM: ended early; its console: {vm.console_tail()}")


def _take(message: dict[str, Any], counted: dict[str, Counted]) -> None:
    one = counted.setdefault(message["name"], Counted(message["name"]))
    if "failed" in message:
        one.failed[message["files"]] = message["failed"]
    else:
        one.exits[message["files"]] = message["exits"]


@contextmanager
def _unpacked(archive: Path) -> Iterator[Path]:
    """The root file system in *archive*, in a folder that goes with the block."""
    with TemporaryDirectory(prefix="cloche-bench-", dir="/var/tmp") as work:
        root = Path(work, "root")
        root.mkdir()
        untar = ("tar", "-C", str(root), "--numeric-owner", "-xpf", "-")
        with subprocess.Popen(
            ["tar", "-xOf", str(archive), "layer.tar"], stdout=subprocess.PIPE
        ) as reader:
            subprocess.run(untar, stdin=reader.stdout, check=True)
        yield root


def _environment(root: Path) -> dict[str, str]:
    """The outer VM's: that of the tests, and where the Debian is."""
    return {**vm_environment(), "PYTHONDONTWRITEBYTECODE": "1", ROOT_VARIABLE: str(root)}


class _Report:
    """What is told while the kernel's package is fetched."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def step(self, text: str) -> None:
        """A step begins."""
        self._progress.step(text)

    def advance(self, fraction: float) -> None:
        """Nothing: it is done once."""

    def note(self, text: str) -> None:
        """Something to know."""
        self._progress.note(text)


def to_markdown(counted: Sequence[Counted]) -> str:
    """The section, its heading first."""
    columns = [(files, kind) for files in FILES for kind in KINDS]
    header = ["", "requests", *(f"{files}: {kind}" for files, kind in columns)]
    rows = [
        [one.name, _requests(one), *(_cell(one, files, kind) for files, kind in columns)]
        for one in counted
    ]
    lines = [
        f"- {one.name}, {files}: {' '.join(reason.split())}\n"
        for one in counted
        for files, reason in one.failed.items()
    ]
    failures = ["\nFailed:\n\n", *lines] if lines else []
    return f"{KVM}\n{_INTRODUCTION}{table(header, rows)}{''.join(failures)}"


def _requests(one: Counted) -> str:
    return f"{one.requests:,}" if isinstance(one.requests, int) else one.requests


def _cell(one: Counted, files: str, kind: str) -> str:
    if files in one.failed:
        return "failed"
    return f"{one.exits[files][kind]:,}" if files in one.exits else "–"
