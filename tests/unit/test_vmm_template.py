"""Which template a start takes: one of its very shape, and whole."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from cloche.vmm.argv import variants
from cloche.vmm.shape import Shape
from cloche.vmm.template import load_template, template_image
from cloche.vmm.template_maker import remove_unused

STATE = b"device state" * 100


def shape(**changes: object) -> Shape:
    """A shape; its QEMU is a file that is there."""
    variant = variants("tcg", "microvm")[0]
    fields = {"qemu": "/bin/sh", "variant": variant, "accel": "tcg", "cpus": 1, "memory": 4}
    return Shape(**{**fields, "guest_key": "key", **changes})  # type: ignore[arg-type]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a saved template."""
    folder = tmp_path / shape().directory_name()
    folder.mkdir()
    (folder / "device").write_bytes(STATE)
    (folder / "memory").touch()
    os.truncate(folder / "memory", 4 << 20)
    manifest = {
        "identity": shape().identity(),
        "device_crc32": zlib.crc32(STATE),
        "sums": {"memory": 0},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_template_is_found(saved: Path) -> None:
    template = load_template(str(saved.parent), shape())
    assert template is not None
    assert (template.memory_file, template.state) == (str(saved / "memory"), STATE)


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
def test_a_template_of_another_shape_is_not(saved: Path, changes: dict[str, object]) -> None:
    other = shape(**changes)
    assert load_template(str(saved.parent), other) is None
    saved.rename(saved.parent / other.directory_name())  # as if the checksums were the same
    assert load_template(str(saved.parent), other) is None


def cut(name: str, size: int) -> Callable[[Path], None]:
    """Damage: a file cut to *size*."""
    return lambda folder: os.truncate(folder / name, size)


def without_sums(folder: Path) -> None:
    """As made by a cloche that kept no checksum of the memory."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sums"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage",
    [
        cut("device", 0),
        cut("device", 500),
        cut("memory", 1 << 20),
        cut("memory", 5 << 20),
        cut("manifest.json", 0),
        cut("manifest.json", 20),
        lambda folder: (folder / "device").write_bytes(STATE[::-1]),
        lambda folder: (folder / "device").unlink(),
        lambda folder: (folder / "memory").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        without_sums,
        lambda folder: (folder / "manifest.json").write_bytes(b"\xff"),
    ],
)
def test_a_damaged_template_is_none(saved: Path, damage: Callable[[Path], object]) -> None:
    damage(saved)
    assert load_template(str(saved.parent), shape()) is None


def test_templates_of_guests_out_of_use_are_removed(saved: Path) -> None:
    root = str(saved.parent)
    assert remove_unused(root, ["other", "key"], "/bin/sh") == []
    (saved.parent / "damaged").mkdir()
    (saved.parent / "damaged/manifest.json").write_text("{")
    assert remove_unused(root, ["key"], "/bin/sh") == ["damaged"]
    (saved.parent / "found to be so").mkdir()
    template_image(str(saved.parent / "found to be so")).put_out_of_use("checksum of memory")
    assert remove_unused(root, ["key"], "/bin/sh") == ["found to be so"]
    assert remove_unused(root, ["other"], "/bin/sh") == [saved.name]
    assert list(saved.parent.iterdir()) == []


def test_templates_of_another_qemu_are_removed(saved: Path) -> None:
    root = str(saved.parent)
    assert remove_unused(root, ["key"], "/bin/sh") == []
    assert remove_unused(root, ["key"], "/bin/ls") == [saved.name]


@pytest.mark.parametrize("index", [0, 1, 6], ids=["FORMAT", "QEMU as it was", "host CPU"])
def test_templates_that_no_start_here_fits_are_removed(saved: Path, index: int) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["identity"][index] += " before"
    (saved / "manifest.json").write_text(json.dumps(manifest))
    assert remove_unused(str(saved.parent), ["key"], "/bin/sh") == [saved.name]
