"""Files served by cloche-files (`files = fuse`) where much is asked of it, or little is allowed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .bundles import Bundle
from .file_comparison import FUSE, names_of_checks, seen_by_both, with_python
from .host import processes
from .runtime import Container, Runtime
from .test_pods import joining

CHECKS = "file_checks_rare"


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


@pytest.fixture(scope="module")
def seen(
    program: Path, busybox_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the checks saw, in a container of cloche's and in one of runc's."""
    return seen_by_both(program, busybox_root, tmp_path_factory.getbasetemp(), CHECKS)


@pytest.mark.parametrize("name", names_of_checks(CHECKS))
def test_programs_find_what_they_find_under_runc(
    seen: tuple[dict[str, Any], dict[str, Any]], name: str
) -> None:
    ours, theirs = seen
    assert ours[name] == theirs[name]


@pytest.fixture
def running(limited: Callable[..., Runtime], bundle: Bundle, data: Path) -> Container:
    """A container with Python that has the folder *data* as /data."""
    runtime = limited("-n", "$(ulimit -Hn)")
    return runtime.start(with_python(bundle).mount("/data", "bind", data, "rbind"))


def test_a_hundred_thousand_entries(running: Container, data: Path) -> None:
    """Of which many hosts hold only some open at a time."""
    count = 100_000
    folder = data / "many"
    folder.mkdir()
    for number in range(count):
        os.close(os.open(folder / f"{number:07}", os.O_WRONLY | os.O_CREAT))
    names = "import os; print(len(os.listdir('/data/many')), len(set(os.listdir('/data/many'))))"
    look = f"{names}; print(os.stat('/data/many/0099999').st_size)"
    assert running.sh(f'python3 -c "{look}"').lines == [f"{count} {count}", "0"]
    for number in range(0, count, 2):
        os.unlink(folder / f"{number:07}")
    assert running.sh(f'python3 -c "{names}"').output == f"{count // 2} {count // 2}"


def test_both_sides_append_to_a_file(running: Container, data: Path) -> None:
    """Lines that lie in one page: the guest's kernel makes two of what goes over its end."""
    host, guest = "from the host..", "from the guest."

    def append() -> None:
        with open(data / "log", "ab", buffering=0) as file:
            while not (data / "done").exists():
                file.write(f"{host}\n".encode())

    thread = threading.Thread(target=append)
    thread.start()
    try:
        running.sh(f"for n in $(seq 300); do echo {guest}; done >>/data/log")
    finally:
        (data / "done").touch()
        thread.join()
    lines = (data / "log").read_text().splitlines()
    assert (set(lines), lines.count(guest)) == ({host, guest}, 300)
    assert running.sh("wc -l </data/log").output == str(len(lines))


def test_containers_of_one_vm_meet_in_a_volume(
    limited: Callable[..., Runtime], new_bundle: Callable[[], Bundle], data: Path
) -> None:
    """By FIFOs, sockets, mappings and events: there is one inode for each file."""
    runtime = limited("-n", "$(ulimit -Hn)")
    bundles = [
        with_python(new_bundle()).args("sleep", "1000").mount("/data", "bind", data, "rbind")
        for _ in range(2)
    ]
    first = runtime.start(bundles[0])
    second = runtime.start(joining(bundles[1], first, "network"))
    first.sh("mkfifo /data/fifo")
    first.exec_detached("sh", "-c", "cat /data/fifo >/data/out; echo >>/data/out end")
    second.sh("echo through >/data/fifo; until grep -q end /data/out; do :; done")
    assert (data / "out").read_text() == "through\nend\n"
    listen = "import socket as s; l = s.socket(s.AF_UNIX); l.bind('/data/s'); l.listen(); "
    answer = "c = l.accept()[0]; c.sendall(c.recv(99)[::-1])"
    first.exec_detached("python3", "-c", listen + answer)
    connect = "import socket as s; c = s.socket(s.AF_UNIX); c.connect('/data/s'); "
    ask = "c.sendall(b'abc'); print(c.recv(99).decode())"
    waiting = "until [ -S /data/s ]; do :; done; until"
    assert second.sh(f'{waiting} python3 -c "{connect}{ask}" 2>/dev/null; do :; done').output == (
        "cba"
    )
