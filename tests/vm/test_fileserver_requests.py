"""How often the guest asks the server of its files: what a program costs, on a busy machine too.

Some requests the relay in the guest answers itself (docs/files.md): those must not become wrong.
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.dockerd import wait_until

from .bundles import Bundle
from .file_comparison import FUSE
from .runtime import Container, Runtime
from .test_fileserver import server_of

ASKING = {"LOOKUP", "GETATTR", "GETXATTR"}


@pytest.fixture
def running(program: Path, folder: Path, bundle: Bundle, data: Path) -> Iterator[Container]:
    """A container that has the folder *data* as /data, and has executed what it needs."""
    runtime = Runtime(program, folder / "cloche", FUSE)
    container = runtime.start(bundle.mount("/data", "bind", data, "rbind"))
    container.sh("cd /data; echo x >warm; mkdir e; ls; rm -r warm e")
    yield container
    runtime.clean_up()


def counts(container: Container) -> Counter[str]:
    """How many requests the server has had, as it says when it is asked by SIGUSR1."""
    log = container.runtime.root / container.id / "files.log"
    before = log.read_text()
    os.kill(server_of(container), signal.SIGUSR1)
    wait_until(lambda: log.read_text() != before, "an answer to SIGUSR1")
    line = log.read_text().removeprefix(before)
    return Counter({name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", line)})


def asked(container: Container, script: str) -> Counter[str]:
    """The requests that a shell script makes."""
    before = counts(container)
    container.sh(script)
    return counts(container) - before


def test_a_start_asks_for_little(program: Path, folder: Path, bundle: Bundle) -> None:
    runtime = Runtime(program, folder / "cloche", FUSE)
    runtime.run(bundle.args("true"))  # makes what starts need, if there is none
    bundle.process["env"].append("HOME=/")
    container = runtime.start(bundle.args("/bin/busybox", "sleep", "100000"))
    asked = counts(container)
    # The container's folder, its rootfs, all that is in it at once, the program.
    assert (asked["LOOKUP"], asked["READDIRPLUS"]) == (3, 1), asked
    assert set(asked) <= {"0", "LOOKUP", "READDIRPLUS", "OPEN", "READ", "MKDIR"}, asked
    runtime.clean_up()


def test_a_small_file_takes_two_requests_to_write_and_one_to_remove(running: Container) -> None:
    script = "cd /data; for i in $(seq 100 199); do echo x >f$i; done"
    made = asked(running, f"mkdir /data/new; {script.replace('/data', '/data/new')}")
    assert (made["MKNOD"], made["WRITE"]) == (100, 100)
    # Names are told to the relay as bits: now and then a new name has the bit of another one.
    assert sum(made[name] for name in ASKING) < 10, made
    gone = asked(running, "rm -r /data/new")
    assert (gone["UNLINK"], gone["RMDIR"]) == (100, 1)
    assert sum(gone[name] for name in ASKING) < 10, gone
    made = asked(running, script)  # a folder that was there before
    assert (made["MKNOD"], made["WRITE"]) == (100, 100)
    assert sum(made[name] for name in ASKING) < 10, made


def test_a_program_is_executed_again_without_a_request(running: Container) -> None:
    running.sh("for i in 1 2 3; do /bin/busybox true; done")
    again = asked(running, "for i in 1 2 3 4 5 6 7 8; do /bin/busybox true; done")
    assert again.total() == 0, again


def test_names_that_the_host_makes_are_found(running: Container, data: Path) -> None:
    running.sh("echo 1 >/data/one; cat /data/one")  # from now on the relay knows all names
    for name in ("two", "three"):
        (data / name).write_text(f"{name}\n")
        assert running.sh(f"cat /data/{name}").output == name
    (data / "two").rename(data / "four")
    assert running.sh("cat /data/four").output == "two"
    assert running.sh("cat /data/two", code=None).code != 0


def test_names_that_the_guest_makes_are_found(running: Container) -> None:
    """By each way there is, and by another mount of the same folder."""
    running.sh("cd /data; echo 1 >one; echo 2 >two; cat one two")
    script = (
        "cd /data; ln one l; ln -s one s; mkdir d; mv two m; mkfifo p; mv d e; touch e/x;"
        "for i in l s m p e e/x; do [ -e $i ] && echo $i; done; [ -e two ] || [ -e d ] || echo no"
    )
    assert running.sh(script).lines == ["l", "s", "m", "p", "e", "e/x", "no"]


def test_attributes_of_a_folder_follow_each_change(running: Container, data: Path) -> None:
    running.sh("mkdir /data/d")
    steps = [
        "touch d/a",
        "mkdir d/b",
        "chmod 700 d",
        "rmdir d/b",
        "mkdir d/c; chmod 711 d",
        "mv d/c c; mv c d/e",
        "rm d/a; rmdir d/e",
        "chown 7:8 d; touch d/f",
    ]
    for step in steps:
        output = running.sh(f"cd /data; {step}; stat -c '%a %h %u %g %Y' d").output
        stat = (data / "d").stat()
        expected = f"{stat.st_mode & 0o7777:o} {stat.st_nlink} {stat.st_uid} {stat.st_gid}"
        assert output == f"{expected} {int(stat.st_mtime)}", step
    os.chmod(data / "d", 0o705)
    assert running.sh("rm /data/d/f; stat -c %a /data/d").output == "705"


def test_a_removed_folder_that_is_open_has_no_links(running: Container) -> None:
    script = "mkdir /data/g; cd /data/g; touch a; rm a; rmdir /data/g; stat -c %h ."
    assert running.sh(script).output == "0"
