"""IPv6 in the guest is on or off as in the network namespace that an engine has prepared."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from .bundles import Bundle
from .runtime import Runtime
from .test_process import same_under_runc

# disable_ipv6 of each, set in this order; an interface is there where it is named.
CASES: list[dict[str, int]] = [
    {},
    {"all": 1},
    {"lo": 1},
    {"all": 1, "lo": 0},
    {"default": 1},
    {"eth0": 0},
    {"all": 1, "eth0": 1},
    {"all": 1, "eth0": 0, "lo": 0},
    {"eth0": 1},
    {"default": 1, "eth0": 0},
]
SHOW = (
    "cd /proc/sys/net/ipv6/conf; grep . */disable_ipv6; "
    "ip -6 -o addr | awk '$4 !~ /^fe80/ {print $2, $4}'; "
    # Those of link-local addresses, and of groups, come when the link is up.
    "ip -6 route show table all | grep ^local | grep -v fe80"
)


@pytest.fixture
def namespace(bundle: Bundle) -> Iterator[str]:
    """The name of a network namespace, which the bundle joins, as of an engine's container."""
    name = f"six{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    inside(name, "ip link set lo up")
    for each in bundle.linux["namespaces"]:
        if each["type"] == "network":
            each["path"] = f"/run/netns/{name}"
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


def inside(name: str, script: str) -> None:
    """Run *script* in the network namespace *name*."""
    subprocess.run(["ip", "netns", "exec", name, "sh", "-ec", script], check=True)


def prepare(name: str, settings: dict[str, int]) -> None:
    """Switch IPv6 off and on in the namespace, and give eth0 addresses if it is to be there."""
    script = ""
    if "eth0" in settings:
        # Settings of `default` are for what comes later: the interface is there before.
        script += f"ip link add eth0 type veth peer name {name}; ip link set eth0 up; "
        script += f"ip link set {name} up; ip addr add 10.77.0.2/24 dev eth0; "
    for place, value in settings.items():
        script += f"echo {value} >/proc/sys/net/ipv6/conf/{place}/disable_ipv6; "
    if settings.get("eth0") == 0:
        script += "ip -6 addr add fd00:c1::2/64 dev eth0 nodad; "
    # An end that is up, but not to be carried over.
    if "eth0" in settings:
        script += f"ip link set {name} netns 1"
    inside(name, script)


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_ipv6_is_on_or_off_as_in_the_namespace(
    cloche: Runtime, runc: Runtime, bundle: Bundle, namespace: str, settings: dict[str, int]
) -> None:
    prepare(namespace, settings)
    bundle.sh(SHOW)
    result = same_under_runc(cloche, runc, bundle)
    off = settings.get("lo", settings.get("all", 0))
    assert f"lo/disable_ipv6:{off}" in result.lines
    assert ("lo ::1/128" in result.lines) == (not off)


def test_in_a_user_namespace(cloche: Runtime, bundle: Bundle, namespace: str) -> None:
    prepare(namespace, {"all": 1})
    ids = [{"containerID": 0, "hostID": 0, "size": 65536}]
    bundle.linux["namespaces"].append({"type": "user"})
    bundle.linux["uidMappings"] = bundle.linux["gidMappings"] = ids
    result = cloche.run(bundle.sh(SHOW), code=1)
    assert result.lines == [f"{name}/disable_ipv6:1" for name in ("all", "default", "lo")]


def test_a_namespace_of_its_own_is_as_the_kernel_makes_it(
    cloche: Runtime, runc: Runtime, bundle: Bundle
) -> None:
    assert "lo ::1/128" in same_under_runc(cloche, runc, bundle.sh(SHOW)).lines
