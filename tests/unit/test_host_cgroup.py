"""Where a container's cgroup on the host is."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloche.base.errors import ConfigError
from cloche.heart.cleanup import clear
from cloche.host.cgroup import relative_path


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("", "cloche/box"),
        ("/docker/abc", "docker/abc"),
        ("docker/abc", "docker/abc"),
        ("/a/../b//c/", "b/c"),
        ("../../etc", "etc"),
        ("system.slice:docker:abc", "system.slice/docker-abc.scope"),
        (":docker:abc", "system.slice/docker-abc.scope"),
        ("user-1000.slice::abc", "user.slice/user-1000.slice/abc.scope"),
        ("a-b-c.slice:p:n", "a.slice/a-b.slice/a-b-c.slice/p-n.scope"),
        ("/kubepods/pod1:x", "kubepods/pod1:x"),
    ],
)
def test_paths(given: str, path: str) -> None:
    assert relative_path(given, "box") == path


@pytest.mark.parametrize("given", ["/", "..", "/..", "a/.."])
def test_the_root_is_no_place(given: str) -> None:
    with pytest.raises(ConfigError, match="names the root"):
        relative_path(given, "box")


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("-.slice:p:n", "p-n.scope"),
        ("/a/b:c:d", "a/b:c:d"),
        ("x/../y:a:b", "y:a:b"),
        ("/" + "x" * 300, "x" * 300),
        ("/a" * 255, "/".join("a" * 255)),
    ],
)
def test_unusual_paths(given: str, path: str) -> None:
    assert relative_path(given, "box") == path


@pytest.mark.parametrize(
    "given",
    ["/a\0", "/a\nb", "\ud800", "/a" * 256, "/" + "x" * 4000, "a--b.slice:p:n", "a.slice:p:\0"],
)
def test_what_no_cgroup_can_be_named(given: str) -> None:
    with pytest.raises(ConfigError, match=r"^\$\.linux\.cgroupsPath: "):
        relative_path(given, "box")


@pytest.mark.parametrize("noted", ["a\0b", "/../../..", "x" * 5000])
def test_what_is_left_of_an_odd_one_is_cleared(tmp_path: Path, noted: str) -> None:
    """An id under which a creation failed can be used again, whatever its path was."""
    (tmp_path / "box").mkdir()
    (tmp_path / "box/cgroup").write_text(noted)
    clear(str(tmp_path), "box", noted)
    assert not (tmp_path / "box").exists()
