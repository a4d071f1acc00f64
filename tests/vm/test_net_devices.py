"""linux.netDevices: network devices of the host that move into a container's VM."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator

import pytest

from .bundles import Bundle
from .runtime import Runtime

Make = Callable[[int], str]


def ip(*words: str, check: bool = True) -> str:
    """What ip(8) says."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=check)
    return done.stdout


@pytest.fixture
def device() -> Iterator[Make]:
    """Makes veths on the host: 10.217.N.2/24 on the end whose name is given, .1 on the other."""
    made: list[str] = []

    def make(number: int) -> str:
        name, peer = f"mv{os.getpid()}-{number}", f"pe{os.getpid()}-{number}"
        ip("link", "add", name, "type", "veth", "peer", "name", peer)
        made.append(peer)
        ip("address", "add", f"10.217.{number}.1/24", "dev", peer)
        ip("link", "set", peer, "up")
        ip("address", "add", f"10.217.{number}.2/24", "broadcast", "+", "dev", name)
        ip("address", "add", f"fd17:{number}::2/64", "dev", name)
        return name

    yield make
    for peer in made:
        ip("link", "delete", peer, check=False)


def test_it_moves_with_its_addresses(cloche: Runtime, bundle: Bundle, device: Make) -> None:
    first, second = device(1), device(2)
    bundle.linux["netDevices"] = {first: {"name": "net7"}, second: {}}
    container = cloche.start(bundle.capabilities("CAP_NET_RAW"))
    assert ip("link", "show", first, check=False) == ""
    told = container.sh("ip -4 -o address show; ip -6 -o address show; ip link show").output
    assert "10.217.1.2/24 brd 10.217.1.255 scope global noprefixroute net7" in told
    assert "fd17:1::2/64" in told
    assert f"10.217.2.2/24 brd 10.217.2.255 scope global noprefixroute {second}" in told
    assert "net7: <BROADCAST,MULTICAST,UP,LOWER_UP>" in told
    container.sh("ping -c 1 -W 20 10.217.1.1 && ping -c 1 -W 20 10.217.2.1")


def test_a_number_that_the_kernel_finds(cloche: Runtime, bundle: Bundle, device: Make) -> None:
    bundle.linux["netDevices"] = {device(number): {"name": "net%d"} for number in (1, 2)}
    result = cloche.run(bundle.sh("ls /sys/class/net"))
    assert result.output.split() == ["lo", "net0", "net1"]


@pytest.mark.parametrize(
    ("devices", "problem"),
    [
        ({"nothing": {}}, '$.linux.netDevices["nothing"]: '),
        ({"": {}}, "$.linux.netDevices: "),
        ({"a" * 16: {}}, "cannot name a network device"),
        ({"a/b": {}}, "cannot name a network device"),
        ({"eth0": {"name": "a%d%d"}}, '$.linux.netDevices["eth0"].name: '),
        ({"lo": {}}, '$.linux.netDevices["lo"]: '),
        ({"eth0": "eth1"}, "expected object, got str"),
    ],
)
def test_what_cannot_move(cloche: Runtime, bundle: Bundle, devices: object, problem: str) -> None:
    bundle.linux["netDevices"] = devices
    message = cloche.fails("create", "--bundle", bundle.save(), cloche.new_id())
    assert problem in message
    assert cloche.leftovers() == []


def test_two_of_one_name(cloche: Runtime, bundle: Bundle, device: Make) -> None:
    bundle.linux["netDevices"] = {device(1): {"name": "net0"}, device(2): {"name": "net0"}}
    message = cloche.fails("create", "--bundle", bundle.save(), cloche.new_id())
    assert "$.linux.netDevices[" in message
    assert "File exists" in message


def test_none_moves_into_the_hosts_own_network(
    cloche: Runtime, bundle: Bundle, device: Make
) -> None:
    name = device(1)
    spaces = [one for one in bundle.linux["namespaces"] if one["type"] != "network"]
    for path in ("", f"/proc/{os.getpid()}/ns/net"):
        more = [{"type": "network", "path": path}] if path else []
        bundle.linux.update(
            {"namespaces": [*spaces, *more], "netDevices": {name: {"name": "net0"}}}
        )
        message = cloche.fails("create", "--bundle", bundle.save(), cloche.new_id())
        assert "$.linux.netDevices: " in message
    assert name in ip("link", "show", name)
