"""Files served by cloche-files (`files = fuse`) where much is asked of it, or little is allowed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .bundles import Bundle
from .host import processes
from .runtime import Runtime

FUSE = {"CLOCHE_FILES": "fuse"}


@pytest.fixture
def limited(program: Path, folder: Path) -> Iterator[Callable[..., Runtime]]:
    """Makes the cloche command, run by a caller with limits as ulimit(1) sets them."""
    made: list[Runtime] = []

    def make(*limits: str) -> Runtime:
        wrapper = folder / "cloche-with-limits"
        words = " ".join(limits)
        wrapper.write_text(f'#!/bin/sh\nulimit {words} && exec {program} "$@"\n')
        wrapper.chmod(0o755)
        made.append(Runtime(wrapper, folder / "cloche", FUSE))
        return made[-1]

    yield make
    for runtime in made:
        runtime.clean_up()


def server_of(runtime: Runtime) -> int:
    """The process that serves the files of the only container."""
    [pid] = [pid for pid, line in processes(runtime.root) if line.startswith("cloche-files")]
    return pid


def test_more_files_than_the_server_may_hold_open(
    limited: Callable[..., Runtime], bundle: Bundle, data: Path
) -> None:
    most, folders, files = 640, 4, 200
    runtime = limited("-n", str(most))
    for number in range(folders * files):
        place = data / f"{number % folders}"
        place.mkdir(exist_ok=True)
        (place / f"file{number}").write_text(f"{number}\n")
    container = runtime.start(bundle.mount("/data", "bind", data, "rbind"))
    total = sum(range(folders * files))
    for _ in range(2):
        assert container.sh("find /data/* -type f | wc -l").output == str(folders * files + 1)
        sums = "cat /data/*/file* | awk '{ sum += $1 } END { print sum }'"
        assert container.sh(sums).output == str(total)
        assert len(os.listdir(f"/proc/{server_of(runtime)}/fd")) < most
    container.sh("cd /data/0; for n in $(seq 300); do echo $n >new$n; done; rm new*; mkdir last")
    assert (data / "0" / "last").is_dir()


def test_what_is_in_use_is_not_forgotten(
    limited: Callable[..., Runtime], bundle: Bundle, data: Path
) -> None:
    runtime = limited("-n", "640")
    bundle.mount("/data", "bind", data, "rbind").mount("/data/sub", "tmpfs")
    bundle.mount("/data/one", "bind", data / "file", "bind")
    for number in range(800):
        (data / f"{number}").touch()
    container = runtime.start(bundle)
    program = "cd /data; echo 1 >/data/sub/there; exec 3</data/file; echo >begun; read -r x <end"
    container.sh("mkfifo /data/end")
    container.exec_detached("sh", "-c", f"{program}; cat <&3 >out; cat /data/sub/there >>out")
    container.sh("until [ -e /data/begun ]; do :; done; ls -l /data | wc -l; cat /data/1*")
    container.sh("ls -l /data >/dev/null; echo >/data/end; until [ -s /data/out ]; do :; done")
    container.sh("until [ $(wc -l </data/out) = 2 ]; do :; done")
    assert (data / "out").read_text() == "from the host\n1\n"
    assert container.sh("cat /data/one; ls /data/sub").lines == ["from the host", "there"]
