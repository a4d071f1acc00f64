"""A flipped bit in what starts share is found, and what has it is made anew."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.heart import verifier
from cloche.vmm.integrity import TRUSTED_S, Image
from engine.dockerd import wait_until

from . import host
from .bundles import Bundle
from .frozen import FrozenQemu, is_thawed, limited, made_by_a_start, qemu, warnings
from .runtime import Runtime

SIZE = "1 vCPU and 256 MiB"
# In the table of interrupt vectors of real mode, which no guest of ours ever looks at.
HARMLESS = 0x100
# QEMU ends of it by itself, as it does when its guest's kernel crashes; others it never hears,
# being the first process of its namespace.
CRASH = signal.SIGTERM
FROZEN = f"VM: the frozen QEMU of {SIZE} was damaged (checksum of {{}}): made another one"
TEMPLATE = (
    f"VM: the template of {SIZE} was damaged (checksum of memory): booted and saved another one"
)


@pytest.fixture(scope="module")
def made(program: Path, busybox_root: Path, tmp_path_factory: pytest.TempPathFactory) -> FrozenQemu:
    """A template and a frozen QEMU that the tests of this module share."""
    return made_by_a_start(program, busybox_root, tmp_path_factory.mktemp("damage"))[0]


@pytest.fixture
def frozen(cloche: Runtime, made: FrozenQemu) -> FrozenQemu:
    """The frozen QEMU that starts of this test take."""
    cloche.env["CLOCHE_DATA_ROOT"] = str(made.root)
    return made


@pytest.fixture
def small(bundle: Bundle) -> Bundle:
    """A bundle for its VM."""
    return limited(bundle)


def image_of(cloche: Runtime, frozen: FrozenQemu) -> Image:
    """What a start takes."""
    if "CLOCHE_FREEZE" in cloche.env:
        return Image(str(frozen.folder.parent), ("memory",))
    return Image(str(frozen.folder), ("memory", "process"))


def flip(path: str, place: int) -> None:
    """Another bit than was written."""
    with open(path, "r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 4]))


def is_out_of_use(image: Image) -> bool:
    """Whether no start takes it."""
    return not os.path.exists(image.path("manifest.json"))


def test_what_was_just_made_is_known(cloche: Runtime, frozen: FrozenQemu) -> None:
    for env in ({}, {"CLOCHE_FREEZE": "off"}):
        cloche.env.pop("CLOCHE_FREEZE", None)
        cloche.env.update(env)
        assert image_of(cloche, frozen).is_known()


@pytest.mark.parametrize("cloche", ["thawed", "restored"], indirect=True)
def test_a_start_has_it_read_once_a_boot(
    cloche: Runtime, frozen: FrozenQemu, small: Bundle
) -> None:
    image = image_of(cloche, frozen)
    noted = Path(image.path("verified"))
    before = noted.stat()
    assert cloche.run(small.sh("echo ran")).output == "ran"
    assert noted.stat() == before
    noted.write_text(json.dumps(["another boot", *json.loads(noted.read_text())[1:]]))
    assert cloche.run(small).output == "ran"
    wait_until(image.is_known, "it was read")
    assert warnings(cloche) == ""


@pytest.mark.parametrize("cloche", ["thawed", "restored"], indirect=True)
def test_a_flipped_bit_is_found_in_the_background(
    cloche: Runtime, frozen: FrozenQemu, small: Bundle
) -> None:
    """The start after that makes another one, and says why; what else starts share stays."""
    image = image_of(cloche, frozen)
    flip(image.path("memory"), HARMLESS)
    assert cloche.run(small.sh("echo ran")).output == "ran"
    wait_until(lambda: is_out_of_use(image), "it was read")
    is_frozen = "CLOCHE_FREEZE" not in cloche.env
    others = Path(frozen.folder, "memory").stat().st_ino
    assert warnings(cloche) == ""
    assert cloche.run(small).output == "ran"
    assert warnings(cloche) == (FROZEN.format("memory") if is_frozen else TEMPLATE)
    assert image.is_known()
    assert (Path(frozen.folder, "memory").stat().st_ino == others) != is_frozen
    container = cloche.start(small.args("sleep", "1000"))
    assert (is_thawed(container), warnings(cloche)) == (is_frozen, "")


def trusted_no_longer(image: Image) -> None:
    """As if it had been read some time ago."""
    stat = os.stat(image.path("verified"))
    at = stat.st_mtime - TRUSTED_S
    os.utime(image.path("verified"), (at, at))


@pytest.mark.parametrize("cloche", ["thawed", "restored"], indirect=True)
def test_after_a_crash_it_is_read_before_the_next_start(
    cloche: Runtime, frozen: FrozenQemu, small: Bundle
) -> None:
    image = image_of(cloche, frozen)
    container = cloche.start(small.args("sleep", "1000"))
    flip(image.path("memory"), HARMLESS)
    os.kill(qemu(container), CRASH)
    container.wait()
    assert image.is_suspect()
    assert cloche.run(small.sh("echo ran")).output == "ran"
    is_frozen = "CLOCHE_FREEZE" not in cloche.env
    assert warnings(cloche) == (FROZEN.format("memory") if is_frozen else TEMPLATE)
    assert not image.is_suspect()


@pytest.mark.parametrize(
    ("number", "is_suspect"),
    [(CRASH, True), (signal.SIGKILL, False)],
)
def test_which_ends_are_suspect(
    cloche: Runtime, frozen: FrozenQemu, small: Bundle, number: int, is_suspect: bool
) -> None:
    image = image_of(cloche, frozen)
    trusted_no_longer(image)
    container = cloche.start(small.args("sleep", "1000"))
    os.kill(qemu(container), number)
    container.wait()
    assert image.is_suspect() == is_suspect
    again = cloche.start(small)  # where it is whole nothing is said
    assert is_thawed(again)
    assert (image.is_suspect(), image.is_known(), warnings(cloche)) == (False, True, "")


def test_a_guests_kernel_that_crashes_is_suspect(
    cloche: Runtime, frozen: FrozenQemu, small: Bundle
) -> None:
    image = image_of(cloche, frozen)
    trusted_no_longer(image)
    small.capabilities("CAP_SYS_BOOT", "CAP_SYS_ADMIN").mount("/trigger", "proc")
    small.linux["readonlyPaths"] = small.linux["maskedPaths"] = []
    cloche.run(small.sh("echo c >/trigger/sysrq-trigger; sleep 1000"), code=None)
    assert image.is_suspect()
    image.verify()


def test_a_template_is_read_before_a_qemu_is_frozen_of_it(
    cloche: Runtime, frozen: FrozenQemu, small: Bundle
) -> None:
    """Else the damage would be in that one as well, with a checksum that fits."""
    template = Image(str(frozen.folder.parent), ("memory",))
    flip(template.path("memory"), HARMLESS)
    frozen.write_manifest(lambda manifest: manifest.update(identity=[]))
    assert cloche.run(small.sh("echo ran")).output == "ran"
    told = warnings(cloche).splitlines()
    assert "memory: damaged: its checksum is not the maker's" in told[0]
    assert told[1:] == [TEMPLATE]
    assert cloche.run(small).output == "ran"
    assert warnings(cloche) == f"VM: no frozen QEMU of {SIZE}: made one"


# ---- the process that reads


@pytest.fixture
def slow(folder: Path) -> Image:
    """An image that is read for as long as nobody writes into it."""
    image = Image(str(folder / "slow"), ("pipe",))
    os.mkdir(image.folder)
    os.mkfifo(image.path("pipe"))
    Path(image.path("manifest.json")).write_text(json.dumps({"sums": {"pipe": 0}}))
    return image


@pytest.fixture
def reading(slow: Image) -> Iterator[int]:
    """The process that reads it, begun by us, who have something open."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    verifier.begin(slow)
    wait_until(lambda: len(host.processes(Path(slow.folder))) == 1, "it reads")
    ((pid, _),) = host.processes(Path(slow.folder))
    wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "cloche-verify\n", "it is it")
    os.close(writer)
    assert os.read(reader, 1) == b""  # that was the last
    os.close(reader)
    yield pid
    with open(slow.path("pipe"), "wb"):
        pass
    os.waitpid(pid, 0)  # it is ours, being an orphan (see conftest.program)


def _open_files(proc: Path) -> set[str]:
    return {os.readlink(proc / "fd" / name) for name in os.listdir(proc / "fd")}


@pytest.mark.usefixtures("program")
def test_it_has_nothing_of_its_caller(slow: Image, reading: int) -> None:
    proc = Path(f"/proc/{reading}")
    wait_until(lambda: os.sched_getscheduler(reading) == os.SCHED_IDLE, "it is idle")
    assert os.getpriority(os.PRIO_PROCESS, reading) == 19
    assert os.getsid(reading) != os.getsid(0)
    assert os.readlink(proc / "cwd") == "/"
    wait_until(lambda: _open_files(proc) <= {os.devnull, slow.folder}, "it has no other file")
    roots = [line.split(":", 2)[2] for line in (proc / "cgroup").read_text().splitlines()]
    assert {*roots} == {"/"}


@pytest.mark.usefixtures("program", "reading")
def test_one_at_a_time(slow: Image) -> None:
    verifier.begin(slow)
    assert len(host.processes(Path(slow.folder))) == 1
