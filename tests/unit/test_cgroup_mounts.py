"""Which mounts show a container the guest's cgroups."""

from __future__ import annotations

import pytest

from cloche.model.cgroup_mounts import cgroup_mounts, is_host_cgroup
from cloche.model.oci import Mount

OWN = Mount("/sys/fs/cgroup", "cgroup", "cgroup", ("nosuid", "ro"))


def bind(source: str, destination: str, *options: str) -> Mount:
    return Mount(destination, "bind", source, ("bind", *options))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("/sys/fs/cgroup", True),
        ("/sys/fs/cgroup/", True),
        ("/sys/fs/cgroup/systemd", True),
        ("/sys/../sys/fs/cgroup/unified/x", True),
        ("/sys/fs/cgroups", False),
        ("/sys/fs", False),
        ("/data/sys/fs/cgroup", False),
    ],
)
def test_what_is_the_hosts(source: str, expected: bool) -> None:
    assert is_host_cgroup(bind(source, "/x")) is expected


def test_others_stay_as_they_are() -> None:
    assert cgroup_mounts([OWN, bind("/data", "/sys/fs/cgroup/data"), Mount("/proc", "proc")]) == {}


def test_a_writable_hierarchy_makes_the_tree_writable() -> None:
    views = cgroup_mounts(
        [Mount("/proc", "proc"), OWN, bind("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/systemd")]
    )
    assert views == {1: Mount("/sys/fs/cgroup", "cgroup", "cgroup", ("nosuid",)), 2: None}


def test_a_read_only_hierarchy_leaves_it_as_it_is() -> None:
    hierarchy = bind("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/systemd", "ro")
    assert cgroup_mounts([OWN, hierarchy]) == {1: None}


def test_a_bind_elsewhere_becomes_the_guests_tree() -> None:
    (view,) = cgroup_mounts([bind("/sys/fs/cgroup", "/cgroups", "rprivate")]).values()
    assert view is not None
    assert (view.destination, view.type) == ("/cgroups", "cgroup")
    assert view.options == ("rprivate", "nosuid", "noexec")


def test_hierarchies_below_such_a_bind_are_part_of_it() -> None:
    mounts = [bind("/sys/fs/cgroup", "/c"), bind("/sys/fs/cgroup/systemd", "/c/systemd")]
    views = cgroup_mounts(mounts)
    assert views[1] is None
    assert views[0] is not None
