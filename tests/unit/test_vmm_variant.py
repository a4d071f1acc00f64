"""What is known of a QEMU: which machine it starts kernels on, and for how long that holds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloche.vmm.variant import FILE, Variants


@pytest.fixture
def qemu(tmp_path: Path) -> Path:
    """A file in QEMU's place."""
    path = tmp_path / "qemu"
    path.write_bytes(b"one build")
    return path


def known(qemu: Path, machine: str = "auto", accel: str = "tcg") -> Variants:
    return Variants(str(qemu.parent), str(qemu), accel, machine)


def test_nothing_is_known_of_a_new_qemu(qemu: Path) -> None:
    found = known(qemu)
    assert not found.is_known
    assert (found.best, found.refused) == (found.in_order()[0], [])


def test_what_works_is_the_best_one_from_then_on(qemu: Path) -> None:
    found = known(qemu)
    works = found.in_order()[2]
    found.keep(works, ["microvm: silent"])
    for again in (found, known(qemu)):
        assert (str(again.best), again.is_known) == (str(works), True)
        assert again.refused == ["microvm: silent"]
        assert len(again.in_order()) == 4


def test_it_is_of_one_build_one_accelerator_and_one_setting(qemu: Path) -> None:
    found = known(qemu)
    found.keep(found.in_order()[2], [])
    assert not known(qemu, accel="kvm").is_known
    assert not known(qemu, machine="q35").is_known
    qemu.write_bytes(b"another build")
    assert not known(qemu).is_known


def test_a_build_that_is_gone_is_forgotten(qemu: Path) -> None:
    found = known(qemu)
    found.keep(found.best, [])
    before = (qemu.parent / FILE).read_text()
    os.utime(qemu, (1, 1))
    found = known(qemu)
    found.keep(found.best, [])
    after = (qemu.parent / FILE).read_text()
    assert after != before
    assert after.count('"works"') == 1


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', "\xff"])
def test_a_damaged_file_is_as_none(qemu: Path, text: str) -> None:
    (qemu.parent / FILE).write_text(text)
    found = known(qemu)
    assert not found.is_known
    found.keep(found.best, [])
    assert known(qemu).is_known


def test_a_variant_that_is_not_tried_any_more_is_not_taken(qemu: Path) -> None:
    found = known(qemu)
    found.keep(found.best, [])
    file = qemu.parent / FILE
    file.write_text(file.read_text().replace("microvm", "pc"))
    assert not known(qemu).is_known
