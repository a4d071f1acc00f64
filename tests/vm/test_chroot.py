"""In a chroot whose / is no mount point, as live systems and build tools have them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.patience import PATIENCE_SECONDS

from .bundles import Bundle
from .frozen import is_thawed, limited, own_data_root, warnings
from .runtime import Runtime

BOUND = ("usr", "bin", "sbin", "lib", "lib64", "etc", "var", "dev", "proc", "sys", "run", "tmp")


@pytest.fixture
def chroot(cloche: Runtime, folder: Path) -> Iterator[Path]:
    """A plain folder with all that cloche needs bound below it."""
    root = folder / "chroot"
    data = Path(cloche.env.get("CLOCHE_DATA_ROOT", "/var/lib/cloche"))
    needed = [Path("/", name) for name in BOUND]
    needed += [data.resolve(), cloche.program.parents[2]]
    mounted: list[Path] = []
    for path in needed:
        target = root / path.relative_to("/")
        if path.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(os.readlink(path))
        elif path.is_dir() and not target.is_dir():
            target.mkdir(parents=True)
            subprocess.run(["mount", "--rbind", "--make-rslave", path, target], check=True)
            mounted.append(target)
    assert not root.is_mount()
    yield root
    for target in reversed(mounted):
        subprocess.run(["umount", "--recursive", "--lazy", target], check=True)


def run_inside(cloche: Runtime, chroot: Path, bundle: Bundle) -> str:
    """Run *bundle* in a chroot; what it prints."""
    words = [*cloche.argv, "run", "--bundle", bundle.save(), cloche.new_id()]
    argv = ["chroot", str(chroot), *map(str, words)]
    done = subprocess.run(
        argv, env=cloche.env, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


def test_a_container_runs(cloche: Runtime, bundle: Bundle, chroot: Path) -> None:
    assert run_inside(cloche, chroot, bundle.sh("echo ran")) == "ran\n"
    assert cloche.leftovers() == []


def test_a_frozen_qemu_that_was_made_there_serves_everywhere(
    cloche: Runtime, bundle: Bundle, chroot: Path, folder: Path
) -> None:
    """The kernel shows the files of a QEMU in a chroot with other names than it has them itself."""
    cloche.env["CLOCHE_DATA_ROOT"] = str(own_data_root(folder / "data"))
    limited(bundle.sh("echo ran"))
    assert run_inside(cloche, chroot, bundle) == "ran\n"
    assert "no frozen QEMU of 1 vCPU and 256 MiB: made one" in warnings(cloche)
    assert run_inside(cloche, chroot, bundle) == "ran\n"
    container = cloche.start(bundle.args("sleep", "1000"))
    assert is_thawed(container)
    assert warnings(cloche) == ""
