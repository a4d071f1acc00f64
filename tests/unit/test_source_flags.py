"""What bind mounts have from the mounts of their sources."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloche.model.mounts import (
    MS_BIND,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_RELATIME,
    MS_REMOUNT,
    MS_STRICTATIME,
)
from cloche.model.source_flags import (
    Below,
    bind_flags,
    flags_at,
    mounts_below,
    read_mounts,
    uncovered,
)

BIND = MS_BIND | MS_REC
SOURCE = MS_NOSUID | MS_NODEV | MS_NOATIME


@pytest.mark.parametrize(
    ("named", "source", "flags"),
    [
        (BIND, SOURCE, BIND | SOURCE),
        (BIND | MS_NOEXEC, SOURCE, BIND | MS_NOEXEC | MS_NOATIME),
        (BIND | MS_RELATIME, SOURCE, BIND | MS_RELATIME),
        (BIND | MS_NODIRATIME, MS_STRICTATIME, BIND | MS_NODIRATIME),
        (BIND | MS_NOSUID, MS_RDONLY, BIND | MS_NOSUID | MS_RDONLY),
        (MS_BIND | MS_REMOUNT, SOURCE, MS_BIND | MS_REMOUNT),
        (MS_BIND | MS_REMOUNT | MS_NOEXEC, SOURCE, MS_BIND | MS_REMOUNT | MS_NOEXEC),
    ],
)
def test_named_flags_take_the_place_of_the_sources(named: int, source: int, flags: int) -> None:
    assert bind_flags(named, source, is_locked=False) == flags


def test_a_user_namespace_takes_no_flag_away() -> None:
    assert bind_flags(MS_NOEXEC, SOURCE, is_locked=True) == MS_NOEXEC | SOURCE
    assert bind_flags(MS_RELATIME, SOURCE, is_locked=True) == MS_RELATIME | MS_NOSUID | MS_NODEV


def test_the_flags_of_mounts_of_this_machine() -> None:
    lines = [line.split() for line in read_mounts().decode().splitlines()]
    proc = next(line[5] for line in lines if line[4] == "/proc")
    flags = flags_at("/proc")
    for name, flag in (("nosuid", MS_NOSUID), ("nodev", MS_NODEV), ("noexec", MS_NOEXEC)):
        assert bool(flags & flag) == (name in proc.split(","))
    with pytest.raises(FileNotFoundError):
        flags_at("/does/not/exist")


def table(*mounts: tuple[str, str]) -> bytes:
    """The text of /proc/self/mountinfo."""
    lines = [
        f"{number} 1 0:{number} / {path} {options} shared:1 - tmpfs tmpfs rw"
        for number, (path, options) in enumerate(mounts, 20)
    ]
    return "\n".join(lines).encode()


def test_mounts_below_a_folder(tmp_path: Path) -> None:
    folder = os.path.realpath(tmp_path)
    (tmp_path / "link").symlink_to(".")
    mounts = table(
        ("/", "rw"),
        (folder, "rw,nosuid"),
        (f"{folder}2/x", "rw,nosuid"),
        (f"{folder}/b", "ro,nosuid,relatime"),
        (f"{folder}/a\\040\\134x", "rw,nodev"),
        (f"{folder}/plain", "ro,noatime"),
        (f"{folder}/twice", "rw,nosuid"),
        (f"{folder}/twice", "rw,noexec"),
    )
    found = [
        Below("a \\x", MS_NODEV),
        Below("b", MS_RDONLY | MS_NOSUID),
        Below("twice", MS_NOSUID | MS_NOEXEC),
    ]
    assert mounts_below(folder, mounts) == found
    assert mounts_below(str(tmp_path / "link"), mounts) == found
    assert mounts_below(folder + "/none", mounts) == []
    assert len(mounts_below("/", mounts)) == 5


def test_only_what_what_is_above_lacks() -> None:
    below = [
        Below("a", MS_NOSUID),
        Below("a/b", MS_NODEV),
        Below("a/b/c/d", MS_NOSUID),
        Below("x/y", MS_NOEXEC),
    ]
    assert uncovered(below, MS_BIND | MS_RDONLY) == [
        Below("a", MS_RDONLY | MS_NOSUID),
        Below("a/b", MS_RDONLY | MS_NOSUID | MS_NODEV),
        Below("x/y", MS_RDONLY | MS_NOEXEC),
    ]
    assert uncovered(below, MS_NOSUID | MS_NODEV | MS_NOEXEC) == []
