"""Containers that see their cgroup: their own, the guest's, and never the host's."""

from __future__ import annotations

from .bundles import Bundle
from .runtime import Runtime

OWN = "/sys/fs/cgroup"
TYPE = "awk '$2 == \"%s\" { print $3 }' /proc/mounts"


def _with_tree(bundle: Bundle, *options: str) -> Bundle:
    return bundle.without_mount(OWN).mount(OWN, "cgroup", "cgroup", *options)


def test_a_writable_tree_leaves_the_limits_alone(cloche: Runtime, bundle: Bundle) -> None:
    """As on a host with systemd, which mounts it with nsdelegate."""
    bundle.config["linux"]["resources"] = {"memory": {"limit": 64 << 20}, "pids": {"limit": 50}}
    _with_tree(bundle, "rw").sh(
        f"cd {OWN}; mkdir mine && echo made; for file in memory.max pids.max; do"
        " cat $file; (echo max >$file) 2>/dev/null || echo refused; done; cat memory.max"
    )
    expected = ["made", str(64 << 20), "refused", "50", "refused", str(64 << 20)]
    assert cloche.run(bundle).lines == expected


def test_a_hierarchy_of_the_host_is_part_of_the_tree(cloche: Runtime, bundle: Bundle) -> None:
    """What podman gives systemd on a host with cgroup v1."""
    _with_tree(bundle, "ro").mount(f"{OWN}/systemd", "bind", f"{OWN}", "bind", "rprivate")
    bundle.sh(
        f"{TYPE % OWN}; mkdir {OWN}/init.scope && echo $$ >{OWN}/init.scope/cgroup.procs;"
        " cat /proc/self/cgroup"
    )
    assert cloche.run(bundle).lines == ["cgroup2", "0::/init.scope"]


def test_the_hosts_cgroups_are_the_guests(cloche: Runtime, bundle: Bundle) -> None:
    """`-v /sys/fs/cgroup:/sys/fs/cgroup`, as recipes for systemd have it."""
    bundle.without_mount(OWN).mount(OWN, "bind", OWN, "rbind", "rprivate")
    bundle.mount("/elsewhere", "bind", OWN, "rbind")
    bundle.sh(f"{TYPE % OWN}; {TYPE % '/elsewhere'}; mkdir {OWN}/a; ls -d /elsewhere/a")
    assert cloche.run(bundle).lines == ["cgroup2"] * 2 + ["/elsewhere/a"]
