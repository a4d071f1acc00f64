"""Whether a guest's addresses are random."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloche.vmm.argv import variants
from cloche.vmm.randomize import is_randomized, major_version
from cloche.vmm.shape import Shape


@pytest.mark.parametrize(
    ("banner", "major"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright\n", 7),
        ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1)\n", 10),
        ("QEMU emulator version 8.2.2\n", 8),
        ("something else\n", 8),
        ("", 8),
    ],
)
def test_the_version_in_the_banner(banner: str, major: int) -> None:
    assert major_version(banner) == major


def shape(folder: Path, version: str, accel: str, randomize: str) -> Shape:
    qemu = folder / "qemu"
    qemu.write_text(f"#!/bin/sh\necho 'QEMU emulator version {version}'\n")
    qemu.chmod(0o755)
    return Shape(
        qemu=str(qemu),
        variant=variants(accel, "q35")[0],
        accel=accel,
        cpus=1,
        memory=256,
        guest_key="key",
        randomize=randomize,
    )


@pytest.mark.parametrize(
    ("version", "accel", "randomize", "expected"),
    [
        ("7.2.22", "tcg", "auto", False),
        ("7.2.22", "tcg", "on", True),
        ("10.0.2", "tcg", "auto", True),
        ("10.0.2", "tcg", "off", False),
        ("7.2.22", "kvm", "auto", True),
        ("7.2.22", "kvm", "off", False),
    ],
)
def test_random_unless_it_is_dear(
    tmp_path: Path, version: str, accel: str, randomize: str, expected: bool
) -> None:
    assert is_randomized(shape(tmp_path, version, accel, randomize)) is expected


def test_another_setting_is_another_template(tmp_path: Path) -> None:
    names = {
        shape(tmp_path, "7.2.22", "tcg", randomize).directory_name()
        for randomize in ("auto", "on", "off")
    }
    assert len(names) == 3


def test_a_qemu_that_is_not_there_is_somebody_elses_error(tmp_path: Path) -> None:
    absent = shape(tmp_path, "7.2.22", "tcg", "auto")
    (tmp_path / "qemu").unlink()
    assert is_randomized(absent) is True
