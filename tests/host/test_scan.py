"""What `scan` makes of real namespaces, and of ip's answers that this kernel cannot give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cloche.base.errors import ClocheError
from cloche.host.network import Network, parse, scan, user_mode_network
from cloche.host.taps import open_taps

from .conftest import Namespace

MAC = "02:42:ac:11:00:02"


@pytest.fixture
def prepared(namespace: Callable[[], Namespace]) -> Namespace:
    """A namespace with a veth eth0, as an engine prepares it."""
    peer, inside = namespace(), namespace()
    peer.ip(f"link add peer0 type veth peer name eth0 netns {inside.path}", "link set peer0 up")
    inside.ip(
        f"link set eth0 address {MAC} mtu 1450 up",
        "address add 172.17.0.2/16 broadcast 172.17.255.255 dev eth0",
        "address add fd00::2/64 dev eth0 nodad",
    )
    return inside


def scanned(place: Namespace) -> Network:
    with place.entered():
        return scan()


def routes(network: Network) -> list[tuple[Any, ...]]:
    """Destination, prefix, gateway, metric, scope of each route, without the connected ones."""
    names = ("destination", "prefix", "gateway", "metric", "scope")
    return [
        tuple(route[name] for name in names)
        for route in network.routes
        if route["destination"] not in ("172.17.0.0", "fd00::")
    ]


def test_empty_namespace_has_nothing(namespace: Callable[[], Namespace]) -> None:
    network = scanned(namespace())
    assert (network.interfaces, network.routes, network.warnings) == ([], [], [])


def test_interface_is_described(prepared: Namespace) -> None:
    prepared.ip("neighbour add 172.17.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent")
    (eth0,) = scanned(prepared).interfaces
    assert (eth0.name, eth0.kind, eth0.mtu, eth0.up) == ("eth0", "veth", 1450, True)
    assert eth0.mac == bytes.fromhex("0242ac110002")
    # its fe80:: is left to the guest's kernel, which makes the same one
    assert eth0.addresses == [["172.17.0.2", 16, "172.17.255.255"], ["fd00::2", 64, None]]
    assert eth0.neighbours == [["172.17.0.9", bytes.fromhex("020000000009")]]


def test_link_local_address_of_an_administrator_is_kept(prepared: Namespace) -> None:
    prepared.ip("address add fe80::1234/64 dev eth0 nodad")
    (eth0,) = scanned(prepared).interfaces
    assert ["fe80::1234", 64, None] in eth0.addresses


def test_point_to_point_address_keeps_the_route_to_its_peer(prepared: Namespace) -> None:
    prepared.ip("address add 192.0.2.2 peer 192.0.2.1/32 dev eth0")
    network = scanned(prepared)
    assert ["192.0.2.2", 32, None] in network.interfaces[0].addresses
    (route,) = [r for r in network.routes if r["destination"] == "192.0.2.1"]
    assert (route["prefix"], route["source"], route["scope"]) == (32, "192.0.2.2", 253)


def test_connected_routes_come_with_source_and_scope(prepared: Namespace) -> None:
    four, six = scanned(prepared).routes
    assert four == {
        "destination": "172.17.0.0",
        "prefix": 16,
        "gateway": None,
        "interface": "eth0",
        "source": "172.17.0.2",
        "metric": 0,
        "scope": 253,
        "onlink": False,
    }
    assert (six["destination"], six["prefix"], six["metric"]) == ("fd00::", 64, 256)


def test_routes_come_with_gateways_last(prepared: Namespace) -> None:
    prepared.ip(
        "route add default via 172.17.0.1",
        "route add 10.1.0.0/16 via 172.17.0.3 metric 50",
        "route add 10.2.0.1 dev eth0 scope link",
        "route add default via fd00::1",
        "route add fd11::/48 dev eth0",
    )
    assert routes(scanned(prepared)) == [
        ("10.2.0.1", 32, None, 0, 253),
        ("fd11::", 48, None, 1024, 0),
        (None, 0, "172.17.0.1", 0, 0),
        ("10.1.0.0", 16, "172.17.0.3", 50, 0),
        ("::", 0, "fd00::1", 1024, 0),
    ]


def test_default_routes_without_gateway_keep_their_family(prepared: Namespace) -> None:
    prepared.ip("route add default dev eth0", "route add ::/0 dev eth0")
    assert routes(scanned(prepared)) == [(None, 0, None, 0, 253), ("::", 0, None, 1024, 0)]


def test_gateway_outside_the_subnet_is_onlink(prepared: Namespace) -> None:
    prepared.ip("route add default via 169.254.1.1 dev eth0 onlink")
    (default,) = [route for route in scanned(prepared).routes if route["destination"] is None]
    assert (default["gateway"], default["onlink"]) == ("169.254.1.1", True)


@pytest.mark.parametrize(
    ("route", "warning"),
    [
        ("blackhole 10.9.0.0/16", "route 10.9.0.0/16 is left out: its type is blackhole"),
        ("10.9.0.0/16 dev eth0 table 100", "route 10.9.0.0/16 is left out: it is in table 100"),
        ("10.9.0.0/16 via inet6 fd00::1 dev eth0", "its gateway is of another address family"),
    ],
)
def test_route_that_cannot_be_carried_is_warned_about(
    prepared: Namespace, route: str, warning: str
) -> None:
    prepared.ip(f"route add {route}")
    network = scanned(prepared)
    assert routes(network) == []
    (line,) = network.warnings
    assert warning in line


def test_multipath_route_is_narrowed_with_a_warning(prepared: Namespace) -> None:
    prepared.ip("route add 10.9.0.0/16 nexthop via 172.17.0.1 nexthop via 172.17.0.3")
    network = scanned(prepared)
    assert routes(network) == [("10.9.0.0", 16, "172.17.0.1", 0, 0)]
    assert network.warnings == ["network: route 10.9.0.0/16: only its first next hop is used"]


def test_devices_that_are_not_the_containers_are_left_out(prepared: Namespace) -> None:
    prepared.ip(
        "link add port type veth peer name idle",
        "link add bridge0 type bridge",
        "link set port master bridge0 up",
        "link set bridge0 up",
    )
    with prepared.entered():
        taps = open_taps(2)
        prepared.ip("link set cloche0 up")
        network = scan()
    for tap in taps:
        tap.close()
    assert [interface.name for interface in network.interfaces] == ["eth0", "bridge0"]


def test_device_without_ethernet_is_refused(prepared: Namespace) -> None:
    prepared.ip("tuntap add vpn0 mode tun", "address add 10.8.0.2/24 dev vpn0")
    with pytest.raises(ClocheError, match=r"interface vpn0 .*does not speak Ethernet"):
        scanned(prepared)


@pytest.mark.parametrize(("mode", "fits"), [("l2", True), ("l3", False), ("l3s", False)])
def test_ipvlan_fits_in_mode_l2_only(mode: str, fits: bool) -> None:
    """From ip's answer of another machine: this kernel may lack the ipvlan module."""
    link = {
        "ifindex": 7,
        "ifname": "eth0",
        "flags": ["BROADCAST", "MULTICAST", "UP", "LOWER_UP"],
        "mtu": 1500,
        "link_type": "ether",
        "address": MAC,
        "linkinfo": {"info_kind": "ipvlan", "info_data": {"mode": mode}},
        "addr_info": [],
    }
    if fits:
        assert [interface.kind for interface in parse([link], [], []).interfaces] == ["ipvlan"]
    else:
        with pytest.raises(ClocheError, match=f"ipvlan {mode}"):
            parse([link], [], [])


def test_user_mode_request_has_the_form_of_a_scanned_one(prepared: Namespace) -> None:
    user = user_mode_network()
    assert set(user["routes"][0]) == set(scanned(prepared).routes[0])
    assert user["routes"][0]["destination"] == "10.0.2.0"
    assert user["routes"][1]["gateway"] == "10.0.2.2"
