"""Where a container's cgroup on the host is."""

from __future__ import annotations

import pytest

from cloche.base.errors import ConfigError
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
