"""Which frozen QEMU a start takes: one of its very shape and host, whole, its files unchanged."""

from __future__ import annotations

import json
import os
import select
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloche.vmm import frozen
from cloche.vmm.argv import NIC_SLOTS, variants
from cloche.vmm.frozen import (
    RETRY_S,
    RETRY_SOON_S,
    Frozen,
    frozen_folder,
    identity,
    load_frozen,
    print_of,
)
from cloche.vmm.launch import file_limit
from cloche.vmm.shape import Shape

IMAGE = b"cloche-1" + bytes(5000)
TAPS = [12, 15]


def shape(**changes: object) -> Shape:
    """A shape; its QEMU is a file that is there."""
    variant = variants("tcg", "microvm")[0]
    fields = {"qemu": "/bin/sh", "variant": variant, "accel": "tcg", "cpus": 1, "memory": 4}
    return Shape(**{**fields, "guest_key": "key", **changes})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def thaw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cloche-thaw that is found, built or not."""
    program = tmp_path / "cloche-thaw"
    program.touch()
    monkeypatch.setattr(frozen, "thaw_candidates", lambda: ["/does/not/exist", str(program)])
    return program


@pytest.fixture
def libraries(tmp_path: Path) -> list[Path]:
    """Files that the frozen QEMU maps."""
    paths = [tmp_path / "libone.so", tmp_path / "libtwo.so"]
    for path in paths:
        path.write_bytes(b"\x7fELF")
    return paths


@pytest.fixture
def saved(tmp_path: Path, libraries: list[Path]) -> Path:
    """The folder of a frozen QEMU."""
    folder = Path(frozen_folder(str(tmp_path), shape()))
    folder.mkdir(parents=True)
    (folder / "process").write_bytes(IMAGE)
    (folder / "memory").touch()
    os.truncate(folder / "memory", 4 << 20)
    files = [print_of(str(path)) for path in libraries]
    write(folder, identity=identity(shape()), problem="", time=0, taps=TAPS, files=files)
    write(folder, file_limit=file_limit(), sums={"memory": 0, "process": 0})
    return folder


def write(folder: Path, **changes: object) -> None:
    """Change the manifest."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else {"size": len(IMAGE)}
    path.write_text(json.dumps(manifest | changes))


def root_of(saved: Path) -> str:
    """The folder of templates."""
    return str(saved.parent.parent)


def find(saved: Path, wanted: Shape | None = None) -> tuple[Frozen | None, str]:
    """What a start of that shape finds, by default of the one that is saved."""
    return load_frozen(root_of(saved), wanted or shape())


def test_a_frozen_qemu_is_found(saved: Path, thaw: Path) -> None:
    found, problem = find(saved)
    assert problem == ""
    assert found is not None
    assert (found.program, found.qemu) == (str(thaw), "/bin/sh")
    assert (found.folder, found.taps) == (str(saved), TAPS)


def test_one_with_taps_and_one_with_a_user_mode_network_are_two(saved: Path) -> None:
    other = shape(taps=True)
    assert other.directory_name() != shape().directory_name()
    assert find(saved, other) == (None, "")
    # Not even where it stands in the other's place.
    folder = Path(frozen_folder(root_of(saved), other))
    folder.parent.mkdir()
    saved.rename(folder)
    assert find(folder, other) == (None, "")
    assert find(folder) == (None, "")


def test_there_is_none_at_first(tmp_path: Path) -> None:
    assert load_frozen(str(tmp_path), shape()) == (None, "")


def test_without_the_program_there_can_be_none(saved: Path, thaw: Path) -> None:
    thaw.unlink()
    found, problem = find(saved)
    assert found is None
    assert "cloche-thaw is not there (`make agent` builds it)" in problem


@pytest.mark.parametrize(
    "changes",
    [
        {"qemu": "/bin/ls"},
        {"variant": variants("tcg", "q35")[0]},
        {"accel": "kvm"},
        {"cpus": 2},
        {"memory": 8},
        {"guest_key": "other"},
    ],
    ids=str,
)
def test_one_of_another_shape_is_not(saved: Path, changes: dict[str, object]) -> None:
    other = shape(**changes)
    assert find(saved, other) == (None, "")
    saved.parent.rename(saved.parent.with_name(other.directory_name()))
    assert find(saved, other) == (None, "")


def test_everything_of_the_host_is_in_the_identity() -> None:
    parts = identity(shape())
    system = os.uname()
    assert {system.release, system.version} < {*parts}
    flags = next(
        line.partition(": ")[2]
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("flags")
    )
    assert any(flags in part for part in parts)


@pytest.mark.parametrize("index", range(len(identity(shape()))))
def test_one_of_another_host_is_not(saved: Path, index: int) -> None:
    parts = identity(shape())
    parts[index] += " before"
    write(saved, identity=parts)
    assert find(saved) == (None, "")


def test_a_problem_that_was_noted_is_told(saved: Path) -> None:
    for name in ("process", "memory"):
        (saved / name).unlink()
    write(saved, problem="ptrace of 7: not permitted", time=time.time() - RETRY_S + 60)
    assert find(saved) == (None, "ptrace of 7: not permitted")
    # It may have been a passing one.
    write(saved, time=time.time() - RETRY_S - 1)
    assert find(saved) == (None, "")


def test_a_passing_problem_is_forgotten_sooner(saved: Path) -> None:
    write(saved, problem="disk full", retry=RETRY_SOON_S, time=time.time() - RETRY_SOON_S + 60)
    assert find(saved) == (None, "disk full")
    write(saved, time=time.time() - RETRY_SOON_S - 1)
    assert find(saved) == (None, "")


def test_a_problem_of_another_kernel_is_no_problem(saved: Path) -> None:
    write(saved, problem="no pagemap", identity=[*identity(shape())[:-1], "another"])
    assert find(saved) == (None, "")


def test_one_that_may_open_more_files_than_we_stays(saved: Path) -> None:
    """Engines and shells may have different limits: the highest is for all who have it."""
    write(saved, file_limit=file_limit() - 1)
    assert find(saved) == (None, "")
    write(saved, file_limit=file_limit() + 1)
    found, problem = find(saved)
    assert found is not None
    assert (found.files, problem) == (file_limit() + 1, "")


def replaced(path: Path) -> None:
    """As a package manager does it: same size and time, another file."""
    stat = path.stat()
    shutil.copy(path, path.with_suffix(".new"))
    os.utime(path.with_suffix(".new"), ns=(stat.st_atime_ns, stat.st_mtime_ns))
    path.with_suffix(".new").rename(path)


def touched(path: Path) -> None:
    """One nanosecond later."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def grown(path: Path) -> None:
    """Another size, at the same time."""
    stat = path.stat()
    path.write_bytes(b"\x7fELF and more")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", [replaced, touched, grown, Path.unlink])
@pytest.mark.parametrize("index", [0, 1])
def test_a_mapped_file_that_changed(
    saved: Path, libraries: list[Path], index: int, change: Callable[[Path], None]
) -> None:
    assert find(saved)[0] is not None
    change(libraries[index])
    assert find(saved) == (None, "")


def cut(name: str, size: int) -> Callable[[Path], None]:
    """Damage: a file cut to *size*, or made longer."""
    return lambda folder: os.truncate(folder / name, size)


def manifest(**changes: object) -> Callable[[Path], None]:
    """Damage: the manifest says something else."""
    return lambda folder: write(folder, **changes)


def without(name: str) -> Callable[[Path], None]:
    """Damage: the manifest has no such key."""

    def remove(folder: Path) -> None:
        path = folder / "manifest.json"
        kept: dict[str, Any] = json.loads(path.read_text())
        del kept[name]
        path.write_text(json.dumps(kept))

    return remove


@pytest.mark.parametrize(
    "damage",
    [
        cut("process", 0),
        cut("process", len(IMAGE) - 1),
        cut("process", len(IMAGE) + 1),
        cut("memory", 1 << 20),
        cut("memory", 5 << 20),
        cut("manifest.json", 0),
        cut("manifest.json", 20),
        lambda folder: (folder / "process").unlink(),
        lambda folder: (folder / "memory").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (folder / "manifest.json").write_bytes(b"\xff"),
        *(without(name) for name in ("identity", "problem", "taps", "files", "size")),
        without("file_limit"),
        without("sums"),
        manifest(sums={"memory": 0}),
        manifest(files=None),
        manifest(files=[[]]),
        manifest(files=["/bin/sh"]),
        manifest(files=[[7, 7, 7, 7]]),
        manifest(size="5008"),
        manifest(problem="no pagemap", time="yesterday"),
    ],
)
def test_a_damaged_one_is_none(saved: Path, damage: Callable[[Path], object]) -> None:
    assert find(saved)[0] is not None
    damage(saved)
    assert find(saved) == (None, "")


def test_slots_without_a_tap() -> None:
    slots, idle = Frozen("", "", "", TAPS, 0).network([])
    assert slots == idle
    assert len(slots) == NIC_SLOTS
    for fd in idle:
        with pytest.raises(OSError, match="Invalid argument"):
            os.write(fd, bytes(60))
        with pytest.raises(OSError, match="Invalid argument"):
            os.read(fd, 60)
        assert select.select([fd], [], [], 0) == ([], [], [])
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_memory_and_process_are_of_one_making(saved: Path, tmp_path: Path) -> None:
    found, _ = find(saved)
    assert found is not None
    memory, process = found.open()
    saved.rename(tmp_path / "old")
    assert os.fstat(memory).st_size == 4 << 20
    assert os.read(process, 8) == IMAGE[:8]
    for fd in (memory, process):
        assert not os.get_inheritable(fd)
        os.close(fd)
    with pytest.raises(FileNotFoundError):
        found.open()


@pytest.mark.parametrize("name", ["memory", "process"])
def test_one_that_is_gone_leaves_no_descriptors(saved: Path, name: str) -> None:
    found, _ = find(saved)
    assert found is not None
    (saved / name).unlink()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        found.open()
    assert os.listdir("/proc/self/fd") == before


def test_one_that_does_not_thaw_is_given_up(saved: Path) -> None:
    found, _ = find(saved)
    assert found is not None
    for _ in range(2):  # another start may have been quicker
        found.give_up()
        assert find(saved) == (None, "")


def test_a_user_mode_network_has_no_slots() -> None:
    assert Frozen("", "", "", (), 0).network([]) == ([], [])
