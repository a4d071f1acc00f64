"""Files that are opened together."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloche.base.descriptors import open_all


def test_all_of_them_or_none(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("content")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        open_all([str(tmp_path / "there"), str(tmp_path / "none")])
    assert os.listdir("/proc/self/fd") == before
    (fd,) = open_all([str(tmp_path / "there")])
    assert (os.read(fd, 99), os.get_inheritable(fd)) == (b"content", False)
    os.close(fd)


def test_below_a_folder(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("content")
    folder = os.open(tmp_path, os.O_PATH)
    (fd,) = open_all(["there"], folder)
    os.close(folder)
    assert os.read(fd, 99) == b"content"
    os.close(fd)
