"""tools/busybox-image: what it builds runs, what it cannot do it says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from .support import TOOL, make, run


def test_root_file_system_runs(tmp_path: Path) -> None:
    run(TOOL, "rootfs", tmp_path / "rootfs")
    script = "id -un && ls / && wc -l < /etc/passwd"
    words = run("chroot", tmp_path / "rootfs", "/bin/sh", "-c", script).split()
    assert (words[0], words[-1]) == ("root", "3")
    assert {"bin", "dev", "etc", "proc", "sys", "tmp"} <= set(words)
    assert (tmp_path / "rootfs/tmp").stat().st_mode & 0o7777 == 0o1777
    assert (tmp_path / "rootfs/bin/sh").samefile(tmp_path / "rootfs/bin/busybox")


def test_docker_archive_has_the_name_asked_for(tmp_path: Path) -> None:
    run(TOOL, "docker-archive", tmp_path / "x.tar", "example.org/demo:v2")
    assert "example.org/demo:v2" in run("tar", "-xOf", tmp_path / "x.tar", "manifest.json")
    run(TOOL, "docker-archive", tmp_path / "x.tar")
    assert "busybox:latest" in run("tar", "-xOf", tmp_path / "x.tar", "manifest.json")


def test_the_same_busybox_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first.tar", "second.tar"):
        run(TOOL, "docker-archive", tmp_path / name)
    assert (tmp_path / "first.tar").read_bytes() == (tmp_path / "second.tar").read_bytes()


@pytest.mark.parametrize(
    ("words", "environment", "says"),
    [
        (("rootfs", "full"), {}, "full is not empty"),
        (("oci", "full"), {}, "full exists"),
        (("docker-archive", "missing/x.tar"), {}, "missing is no folder"),
        (("rootfs", "new"), {"BUSYBOX": "/nope"}, "apt-get install busybox-static"),
        (("rootfs", "new"), {"BUSYBOX": "/bin/ls"}, "/bin/ls is not statically linked"),
        (("nonsense", "new"), {}, "busybox-image rootfs DIR"),
        ((), {}, "busybox-image rootfs DIR"),
    ],
)
def test_failures_are_explained(
    tmp_path: Path, words: tuple[str, ...], environment: dict[str, str], says: str
) -> None:
    (make(tmp_path / "full") / "file").touch()
    done = subprocess.run(
        [TOOL, *words],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(make(tmp_path / "scratch")), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert says in done.stderr
    assert not (tmp_path / "new").exists()
    assert os.listdir(tmp_path / "scratch") == []
