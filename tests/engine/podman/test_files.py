"""Volumes, cp, commit, diff: the container's files from outside."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from .client import Podman
from .scene import IMAGE


def test_volumes(podman: Podman, tmp_path: Path) -> None:
    """Folders of the host read-write and read-only, and named volumes that outlive containers."""
    (tmp_path / "f").write_text("mine\n")
    volume = podman.new_name("volume")
    binds = ("-v", f"{tmp_path}:/rw", "-v", f"{tmp_path}:/ro:ro", "-v", f"{volume}:/named")
    script = "cat /ro/f; echo new >/rw/g; echo kept >/named/k; touch /ro/x 2>/dev/null || echo ro"
    assert podman.run(*binds, IMAGE, "sh", "-c", script).output.splitlines() == ["mine", "ro"]
    assert (tmp_path / "g").read_text() == "new\n"
    assert podman.run("-v", f"{volume}:/named", IMAGE, "cat", "/named/k").output == "kept"


def test_copy_into_and_out_of_a_running_container(podman: Podman, tmp_path: Path) -> None:
    """cp both ways, into the root and into a volume, and never onto the host's own paths."""
    volume = tmp_path / "volume"
    volume.mkdir()
    (tmp_path / "in").write_text("to be copied\n")
    name = podman.start("-v", f"{volume}:/v", IMAGE, "sleep", "1000")
    for target in ("/tmp/cloche-copied", "/v/copied"):
        podman("cp", str(tmp_path / "in"), f"{name}:{target}")
        assert podman.sh(name, f"cat {target}") == "to be copied"
    assert (volume / "copied").exists()
    assert not Path("/tmp/cloche-copied").exists()
    podman.sh(name, "mkdir -p /tmp/d/e; echo deep >/tmp/d/e/f; ln -s /etc/passwd /tmp/d/link")
    archive = podman("cp", f"{name}:/tmp/d", "-").stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert {"d/e/f", "d/link"} <= set(tar.getnames())
    podman("cp", f"{name}:/etc/passwd", str(tmp_path / "out"))
    assert "app:x:1000" in (tmp_path / "out").read_text()


def test_copy_to_what_only_the_guest_has(podman: Podman, tmp_path: Path) -> None:
    """A tmpfs is memory of the guest: cp refuses, instead of writing where nobody looks."""
    (tmp_path / "in").write_text("x")
    name = podman.start("--tmpfs", "/t", IMAGE, "sleep", "1000")
    refused = podman("cp", str(tmp_path / "in"), f"{name}:/t/x", code=125)
    assert "read-only file system" in refused.stderr.lower()
    assert podman.sh(name, "ls /t") == ""


def test_copy_to_a_stopped_container(podman: Podman, tmp_path: Path) -> None:
    """What is copied into a stopped container is there when it is started again."""
    (tmp_path / "in").write_text("before\n")
    name = podman.new_name("container")
    podman("create", "--network=none", "--name", name, IMAGE, "cat", "/in")
    podman("cp", str(tmp_path / "in"), f"{name}:/in")
    assert podman("start", "-a", name).output == "before"


def test_diff_and_commit(podman: Podman) -> None:
    """What the container has written is its own layer, and becomes an image."""
    name = podman.start(IMAGE, "sleep", "1000")
    podman.sh(name, "echo kept >/kept; rm /etc/group")
    changes = podman("diff", name).output.splitlines()
    assert "A /kept" in changes
    assert "D /etc/group" in changes
    podman("commit", "-q", name, f"localhost/{name}")
    assert podman.run(f"localhost/{name}", "cat", "/kept").output == "kept"
    podman("rmi", f"localhost/{name}")
