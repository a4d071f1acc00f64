"""The share: bind mounts over 9p."""

from __future__ import annotations

import os
from pathlib import Path

from .cloche import Cloche
from .conftest import Bundle


def test_bind_mount_is_read_and_written(cloche: Cloche, bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    data = os.urandom(300_000)
    (folder / "in").write_bytes(data)
    bundle.mount(folder, "/data", "rw")
    bundle.write("sh", "-c", "cp /data/in /data/out && chmod 640 /data/out && mkdir /data/sub")
    cloche.run("run", "-b", bundle.folder, "c")
    assert (folder / "out").read_bytes() == data
    assert (folder / "out").stat().st_mode & 0o7777 == 0o640
    assert (folder / "sub").is_dir()


def test_changes_are_seen_at_once(cloche: Cloche, bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    bundle.mount(folder, "/data", "rw")
    bundle.write("sleep", "1000")
    cloche.run("run", "--detach", "-b", bundle.folder, "c")
    (folder / "from-outside").write_text("one\n")
    seen = cloche.run(
        "exec", "c", "sh", "-c", "cat /data/from-outside; echo two >/data/from-inside"
    )
    assert seen.stdout == "one\n"
    assert (folder / "from-inside").read_text() == "two\n"
    cloche.run("delete", "--force", "c")


def test_read_only_mount_and_root_refuse_writes(
    cloche: Cloche, bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("kept")
    bundle.mount(tmp_path / "file", "/etc/file", "ro")
    bundle.write("sh", "-c", "cat /etc/file; echo changed >/etc/file; echo new >/etc/new; true")
    done = cloche.run("run", "-b", bundle.folder, "c")
    assert done.stdout == "kept"
    assert done.stderr.count("Read-only file system") == 2
    assert (tmp_path / "file").read_text() == "kept"
