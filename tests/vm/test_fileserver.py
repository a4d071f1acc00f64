"""Files served by cloche-files (`files = fuse`): as on the host, for programs and for the host."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .bundles import Bundle
from .file_comparison import FUSE, names_of_checks, seen_by_both
from .runtime import Container, Runtime

CHECKS = "file_checks"
NAMES = names_of_checks(CHECKS)


@pytest.fixture(scope="module")
def seen(
    program: Path, busybox_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the checks saw, in a container of cloche's and in one of runc's."""
    return seen_by_both(program, busybox_root, tmp_path_factory.getbasetemp(), CHECKS)


@pytest.mark.parametrize("name", NAMES)
def test_programs_find_what_they_find_under_runc(
    seen: tuple[dict[str, Any], dict[str, Any]], name: str
) -> None:
    ours, theirs = seen
    assert ours[name] == theirs[name]


@pytest.fixture
def served(program: Path, folder: Path) -> Iterator[Runtime]:
    """The cloche command with files served by cloche-files."""
    runtime = Runtime(program, folder / "cloche", FUSE)
    yield runtime
    runtime.clean_up()


@pytest.fixture
def running(served: Runtime, bundle: Bundle, data: Path) -> Container:
    """A container that has the folder *data* as /data, and has looked at all that is in it."""
    container = served.start(bundle.mount("/data", "bind", data, "rbind"))
    container.sh("ls -lR /data; cat /data/file; cat /data/none", code=None)
    return container


def test_data_that_the_host_writes_are_seen(running: Container, data: Path) -> None:
    for text in ("From the host\n", "shorter\n", "from another host, longer\n"):
        (data / "file").write_text(text)
        assert running.sh("cat /data/file").stdout.decode() == text
    with open(data / "file", "r+") as file:
        file.write("FROM")
        file.flush()
        assert running.sh("cat /data/file").output == "FROM another host, longer"


def test_names_that_the_host_makes_and_removes_are_seen(running: Container, data: Path) -> None:
    (data / "none").write_text("now\n")  # the guest knows that it was not there
    assert running.sh("cat /data/none").output == "now"
    (data / "none").rename(data / "sub" / "moved")
    assert running.sh("cat /data/sub/moved; ls /data /data/sub").lines == [
        *("now", "/data:", "file", "sub", "", "/data/sub:", "moved")
    ]
    (data / "sub" / "moved").unlink()
    assert running.sh("ls -d /data/sub/*; cat /data/sub/moved", code=None).output == ""
    (data / "new").write_text("new\n")
    os.replace(data / "new", data / "file")
    assert running.sh("cat /data/file").output == "new"


def test_folders_that_the_host_renames_are_seen(running: Container, data: Path) -> None:
    (data / "sub" / "inner").mkdir()
    (data / "sub" / "inner" / "file").write_text("inner\n")
    assert running.sh("cat /data/sub/inner/file").output == "inner"
    (data / "sub").rename(data / "other")
    (data / "sub").mkdir()
    assert running.sh("cat /data/other/inner/file; ls /data/sub").output == "inner"


def test_an_atomic_swap_is_seen(served: Runtime, bundle: Bundle, data: Path) -> None:
    """As the kubelet does with ConfigMaps: a link to a folder is replaced."""
    for version in ("one", "two"):
        (data / version).mkdir()
        (data / version / "value").write_text(f"{version}\n")
    (data / "now").symlink_to("one")
    (data / "value").symlink_to("now/value")
    container = served.start(bundle.mount("/data", "bind", data, "rbind"))
    for version in ("one", "two", "one"):
        (data / "next").symlink_to(version)
        os.replace(data / "next", data / "now")
        assert container.sh("cat /data/value").output == version


def test_modes_owners_and_attributes_that_the_host_sets_are_seen(
    running: Container, data: Path
) -> None:
    for mode in (0o600, 0o755):
        os.chmod(data / "file", mode)
        os.chown(data / "sub", mode, mode)
        assert running.sh("stat -c %a /data/file; stat -c %u:%g /data/sub").lines == [
            *(f"{mode:o}", f"{mode}:{mode}")
        ]


def test_a_single_file_that_is_mounted_is_seen(served: Runtime, bundle: Bundle, data: Path) -> None:
    container = served.start(bundle.mount("/etc/one", "bind", data / "file", "bind"))
    for text in ("first", "other"):
        (data / "file").write_text(text)
        assert container.sh("cat /etc/one").output == text


def test_a_running_program_sees_changes(running: Container, data: Path) -> None:
    """No exec, which takes its time, between the change and the look at it."""
    script = "until [ -e /data/go ]; do :; done; cat /data/file; rm /data/go; touch /data/gone"
    running.exec_detached("sh", "-c", f"({script}) >/data/out 2>&1")
    (data / "file").write_text("as it is when it goes\n")
    (data / "go").touch()
    for _ in range(3000):
        if (data / "gone").exists():
            break
        os.sched_yield()
        running.sh("true")
    assert (data / "out").read_text() == "as it is when it goes\n"


def test_what_the_guest_writes_is_on_the_host(running: Container, data: Path) -> None:
    running.sh("echo one >/data/new; echo two >>/data/new; mkdir /data/d; mv /data/new /data/d")
    assert (data / "d" / "new").read_text() == "one\ntwo\n"
    with open(data / "d" / "new", "a") as file:
        file.write("host\n")
    running.sh("echo three >>/data/d/new")
    assert running.sh("cat /data/d/new").lines == ["one", "two", "host", "three"]


@pytest.mark.parametrize("how", ["thawed", "restored", "cold"])
def test_each_way_to_start(
    program: Path, folder: Path, bundle: Bundle, data: Path, how: str
) -> None:
    env = {"thawed": {}, "restored": {"CLOCHE_FREEZE": "off"}, "cold": {"CLOCHE_TEMPLATE": "off"}}
    runtime = Runtime(program, folder / "cloche", FUSE | env[how])
    bundle.mount("/data", "bind", data, "rbind").sh(
        "cat /data/file; head -c 3000000 /dev/zero >/data/big; wc -c </data/big; rm /data/big"
    )
    assert runtime.run(bundle).lines == ["from the host", "3000000"]
    if how == "thawed":
        # A first start makes the frozen QEMU, and says so; the second one has it.
        runtime.log.unlink(missing_ok=True)
        assert runtime.run(bundle).lines == ["from the host", "3000000"]
        assert runtime.messages("warning") == []
    runtime.clean_up()


def server_of(container: Container) -> int:
    share = str(container.runtime.root / container.id / "share")
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] == b"cloche-files" and share.encode() in words:
            return int(name)
    raise AssertionError(f"no server of {share}")


def test_a_server_that_is_killed_fails_what_waits_for_it(running: Container) -> None:
    os.kill(server_of(running), 9)
    result = running.sh("cat /data/file", code=None)
    assert result.code != 0
    running.runtime("delete", "--force", running.id)


OVERLAY = """
    cd /data
    mkdir -p upper work merged
    mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged || exit 1
    cd merged
    echo more >>file; rm gone; rm -r folder; mkdir folder; echo new >folder/new; mv kept moved
    chmod 600 mode; ln file link; ln -s file symlink; mkfifo fifo; cp -p file copy
    mkdir -p deep/er; mv deep deeper; rm -r empty; echo again >gone; rm gone
    find . | sort; cat file folder/new moved/inner link copy; stat -c %a:%h mode link
    cd ..; umount merged
    mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged || exit 1
    find merged | sort; umount merged
    find lower upper | sort; stat -c %F:%t:%T upper/gone upper/empty
"""


def test_an_overlay_with_its_upper_layer_on_the_share(
    served: Runtime, runc: Runtime, bundle: Bundle, folder: Path
) -> None:
    """As Docker and buildah in a container have them: whiteouts, opaque folders, copies."""
    seen = []
    bundle.capabilities("CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_MKNOD", "CAP_FOWNER")
    bundle.mount("/data", "bind", folder / "volume", "rbind").sh(OVERLAY)
    for runtime in (served, runc):
        lower = folder / "volume" / "lower"
        for name in ("folder", "kept", "empty"):
            (lower / name).mkdir(parents=True)
        for name in ("file", "gone", "folder/old", "kept/inner", "mode"):
            (lower / name).write_text(f"{name}\n")
        seen.append(runtime.run(bundle))
        shutil.rmtree(folder / "volume")
    assert seen[0].output == seen[1].output
    assert "character special file:0:0" in seen[0].output
