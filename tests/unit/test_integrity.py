"""Checksums of what starts share, and when they are looked at."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cloche.base.errors import DamagedError
from cloche.vmm.integrity import TRUSTED_S, Image, checksum

MIB = 1 << 20
PLACES = [0, 5 * MIB + 123, 9 * MIB - 1]


def flip(path: Path, place: int) -> None:
    """Another bit than was written."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 4]))


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """An image of two files, whole and known to be so; the first is mostly holes."""
    memory, process = tmp_path / "memory", tmp_path / "process"
    with memory.open("wb") as file:
        for place in (MIB, 5 * MIB + 100, 9 * MIB - 64):
            file.seek(place)
            file.write(os.urandom(64))
    process.write_bytes(os.urandom(100_000))
    image = Image(str(tmp_path), ("memory", "process"))
    (tmp_path / "manifest.json").write_text(json.dumps({"sums": image.sums()}))
    image.note_known()
    return image


def test_holes_do_not_count(image: Image, tmp_path: Path) -> None:
    """A copy of a data folder may have others, or none."""
    for how in ("always", "never"):
        copy = tmp_path / how
        subprocess.run(["cp", f"--sparse={how}", image.path("memory"), copy], check=True)
        assert checksum(str(copy)) == checksum(image.path("memory"))


@pytest.mark.parametrize("place", PLACES)
def test_each_bit_counts(image: Image, place: int) -> None:
    before = checksum(image.path("memory"))
    flip(Path(image.path("memory")), place)
    assert checksum(image.path("memory")) != before
    flip(Path(image.path("memory")), place)
    assert checksum(image.path("memory")) == before


def test_where_something_is_counts(tmp_path: Path) -> None:
    sums = set()
    for place in (0, 1, 65536, MIB):
        path = tmp_path / str(place)
        path.write_bytes(bytes(place) + b"x" + bytes(2 * MIB - place - 1))
        sums.add(checksum(str(path)))
    assert len(sums) == 4


def touched(image: Image) -> None:
    """Written to, though nothing has changed."""
    os.utime(image.path("process"))


def replaced(image: Image) -> None:
    """Another file, of the same content and time."""
    stat = os.stat(image.path("process"))
    Path(f"{image.folder}/new").write_bytes(Path(image.path("process")).read_bytes())
    os.rename(f"{image.folder}/new", image.path("process"))
    os.utime(image.path("process"), ns=(stat.st_atime_ns, stat.st_mtime_ns))


def rebooted(image: Image) -> None:
    """The host was booted since."""
    noted = json.loads(Path(image.path("verified")).read_text())
    Path(image.path("verified")).write_text(json.dumps(["another boot", *noted[1:]]))


def nothing_noted(image: Image) -> None:
    """It was never looked at."""
    os.unlink(image.path("verified"))


def garbage(image: Image) -> None:
    """What is noted cannot be read."""
    Path(image.path("verified")).write_bytes(b"\xff\x00[")


@pytest.mark.parametrize("change", [touched, replaced, rebooted, nothing_noted, garbage])
def test_when_it_is_read_again(image: Image, change: Callable[[Image], None]) -> None:
    assert image.is_known()
    change(image)
    assert not image.is_known()
    image.verify()
    assert image.is_known()


@pytest.mark.parametrize("name", ["memory", "process"])
def test_a_damaged_one_is_put_out_of_use(image: Image, name: str) -> None:
    flip(Path(image.path(name)), 77)
    assert not image.is_known()
    with pytest.raises(DamagedError, match=f"{name}: damaged: its checksum is not the maker's"):
        image.verify()
    assert not os.path.exists(image.path("manifest.json"))
    assert image.why_out_of_use() == f"checksum of {name}"
    image.verify()  # there is nothing any more that a start would take


def test_one_that_is_gone_is_nobodys_concern(image: Image) -> None:
    os.unlink(image.path("memory"))
    image.verify()
    assert os.path.exists(image.path("manifest.json"))


def test_after_a_crash_it_is_read_once(image: Image) -> None:
    long_ago = time.time() - TRUSTED_S - 1
    os.utime(image.path("verified"), (long_ago, long_ago))
    image.note_suspect()
    assert image.is_suspect()
    image.verify()
    assert not image.is_suspect()


def test_one_that_was_read_just_now_is_trusted(image: Image) -> None:
    """A guest may crash at will: that is not to cost every other start 100 ms."""
    image.note_suspect()
    assert not image.is_suspect()
    touched(image)
    image.note_suspect()
    assert image.is_suspect()
