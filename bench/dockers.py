"""`docker run --rm` through a dockerd of the benchmark's own, the one of the engine tests."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from bench.cases import LIVE, Bench, present
from bench.rounds import Limits, Series, interleave
from bench.runtimes import CLOCHE, RUNC, RUNSC, Runtime, environment
from bench.timing import BenchError, Sample, timed
from engine.client import Docker
from engine.dockerd import EngineError, dockerd
from engine.image import IMAGE, build_image

_PACKAGES = {
    "dockerd": "docker.io",
    "docker": "docker.io",
    "containerd": "containerd",
    "iptables": "iptables",
    "ip": "iproute2",
}


def time_docker(bench: Bench, limits: Limits) -> Series:
    """`docker run --rm` of /bin/true; BenchError when there is no dockerd to be had.

    CPU time is not told: the work is done by dockerd, containerd and the shim, not by `docker`.
    """
    check_tools()
    series = Series("docker run --rm")
    runtimes = present(bench, series, LIVE)
    folder = bench.workspace / "d"
    folder.mkdir()
    programs = {
        runtime.name: _program(bench.workspace, runtime)
        for runtime in runtimes
        if runtime.name != RUNC
    }
    try:
        with dockerd(folder, programs) as engine:
            build_image(Docker(engine, RUNC, docker_program()), bench.workspace / "image")
            contenders = {
                runtime.name: _runner(engine.socket, runtime.name) for runtime in runtimes
            }
            interleave(series, contenders, limits, bench.progress.round)
    except (EngineError, AssertionError, OSError, subprocess.CalledProcessError) as error:
        raise BenchError(f"docker: {error}") from None
    return series


def docker_program() -> str:
    """Debian's docker where it is installed: an other one in PATH may be of another release."""
    return "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"


def check_tools() -> None:
    """BenchError that names what is not installed."""
    lacking = sorted(package for tool, package in _PACKAGES.items() if not shutil.which(tool))
    if lacking:
        raise BenchError(f"no Docker to measure with: apt-get install {' '.join(set(lacking))}")


def _program(workspace: Path, runtime: Runtime) -> Path:
    """What dockerd is told to run: it takes a program only, so flags go into a script."""
    if runtime.name == CLOCHE:
        return Path(runtime.program)
    script = workspace / f"{RUNSC}-with-flags"
    command = shlex.join([runtime.program, *runtime.flags])
    script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    script.chmod(0o755)
    return script


def _runner(socket: Path, runtime: str) -> Callable[[], Sample]:
    argv = [docker_program(), "-H", f"unix://{socket}", "run", "--rm"]
    argv += ["--runtime", runtime, IMAGE, "/bin/true"]
    variables = {**environment(), "HOME": "/root"}
    return lambda: Sample(timed(argv, variables).wall_ms, None)
