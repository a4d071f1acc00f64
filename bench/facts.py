"""What was measured, and where: machine, versions, accelerator, load."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
from pathlib import Path

from bench.dockers import docker_program
from bench.runtimes import CLOCHE, RUNC, RUNSC, Runtime
from cloche.base.errors import ClocheError
from cloche.guest.guest import current_guest
from cloche.model.config import load_settings
from cloche.model.state import DEFAULT_ROOT
from cloche.vmm.accel import choose_accel

_REPOSITORY = Path(__file__).resolve().parents[1]
ABSENT = "not installed"

Facts = dict[str, str]


def collect(runtimes: dict[str, Runtime]) -> Facts:
    """Name and value of each fact, in the order of the table."""
    settings = load_settings()
    guest = current_guest(settings.data_root)
    return {
        "Date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "CPU": f"{_cpu_model()}, {os.cpu_count()} cores",
        "Memory": f"{_memory_gib():.0f} GiB",
        "Host kernel": platform.release(),
        "Accelerator": _accelerator(settings.accel),
        "cloche": _line([runtimes[CLOCHE].program, "--version"]) + _commit(),
        "QEMU": _line([settings.qemu, "--version"]),
        "Guest kernel": guest.kernel_release if guest else "none: run `cloche setup`",
        "Machine type": settings.machine,
        RUNC: _line([runtimes[RUNC].program, "--version"]),
        RUNSC: _line([runtimes[RUNSC].program, "--version"]),
        "Docker": _line([docker_program(), "--version"]),
        "Python": platform.python_version(),
    }


def load_average() -> float:
    """The load average of the last minute."""
    return os.getloadavg()[0]


def busy_load() -> float:
    """The load average from which on this machine is too busy for times to mean much."""
    return (os.cpu_count() or 1) / 2


def _accelerator(configured: str) -> str:
    try:
        accel = choose_accel(DEFAULT_ROOT, configured)
    except (ClocheError, OSError) as error:
        return f"unknown: {error}"
    return f"{accel.name} ({accel.reason})"


def _line(argv: list[str]) -> str:
    """The first line of what *argv* prints."""
    if not shutil.which(argv[0]):
        return ABSENT
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10)
    lines = done.stdout.splitlines()
    return lines[0].strip() if lines else f"unknown: {done.stderr.strip()}"


def _commit() -> str:
    """The commit of this checkout; `-dirty` when it has changes that are in none."""
    argv = ["git", "-C", str(_REPOSITORY), "describe", "--always", "--dirty", "--abbrev=10"]
    if not shutil.which("git"):
        return ""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return f", commit {done.stdout.strip()}" if done.returncode == 0 else ""


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
