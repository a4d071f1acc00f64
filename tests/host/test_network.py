"""The network path of a sandbox in real namespaces: an engine's peer, the sandbox, a guest."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cloche.base.errors import ClocheError
from cloche.host.network import connect, scan
from cloche.host.taps import Tap, open_taps
from engine.patience import PATIENCE_SECONDS

from .conftest import Namespace
from .guest import Guest

Make = Callable[[], Namespace]


class Site:
    """An engine's side (*peer*), the container's namespace (*inside*) and the guest's."""

    def __init__(self, make: Make) -> None:
        self.peer, self.inside, self.outside = make(), make(), make()
        self.taps: list[Tap] = []
        self.guest: Guest | None = None

    def veth(self, number: int = 0, *, mtu: int = 1500) -> None:
        """A veth as Docker makes it: 10.N.0.2/24 and fd0N::2 inside, .1 and ::1 at the peer."""
        inside, peer = f"eth{number}", f"peer{number}"
        self.peer.ip(f"link add {peer} type veth peer name {inside} netns {self.inside.path}")
        for place, name, last in ((self.peer, peer, 1), (self.inside, inside, 2)):
            place.ip(
                f"link set {name} mtu {mtu} up",
                f"address add 10.{number}.0.{last}/24 broadcast 10.{number}.0.255 dev {name}",
                f"address add fd0{number}::{last}/64 dev {name} nodad",
            )

    def open(self, count: int = 1) -> None:
        with self.inside.entered():
            self.taps = open_taps(count)

    def connect(self, *, offload: bool = True) -> dict[str, Any]:
        """Adopt the namespace and start the guest; returns the agent's request."""
        with self.inside.entered():
            network = scan()
            request = connect(network, self.taps)
        used = self.taps[: len(network.interfaces)]
        self.guest = Guest(self.outside, used, offload=offload)
        self.guest.apply(request)
        return request

    def close(self) -> None:
        if self.guest is not None:
            self.guest.close()
        for tap in self.taps:
            tap.close()


@pytest.fixture
def site(namespace: Make) -> Iterator[Site]:
    made = Site(namespace)
    yield made
    made.close()


def ping(place: Namespace, target: str, *options: str) -> None:
    applet = "ping6" if ":" in target else "ping"
    place.run("busybox", applet, "-c", "2", "-i", "0.2", "-W", "5", *options, target)


def listen(place: Namespace, address: str) -> socket.socket:
    with place.entered():
        return socket.create_server((address, 0), family=_family(address))


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def transfer(source: Namespace, target: Namespace, address: str, size: int) -> None:
    """Send *size* bytes over TCP and compare checksums."""
    data = os.urandom(size)
    received = hashlib.sha256()
    with listen(target, address) as server:

        def receive() -> None:
            connection, _ = server.accept()
            with connection:
                while chunk := connection.recv(1 << 20):
                    received.update(chunk)

        thread = threading.Thread(target=receive)
        thread.start()
        with source.entered():
            client = socket.create_connection(server.getsockname()[:2], timeout=PATIENCE_SECONDS)
        with client:
            client.sendall(data)
        thread.join(30)
    assert received.digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("offload", [True, False])
def test_guest_and_peer_reach_each_other(site: Site, offload: bool) -> None:
    site.veth()
    site.open()
    site.connect(offload=offload)
    ping(site.outside, "10.0.0.1")
    ping(site.peer, "10.0.0.2")
    ping(site.outside, "fd00::1")
    ping(site.peer, "fd00::2")
    transfer(site.outside, site.peer, "10.0.0.1", 20_000_000)
    transfer(site.peer, site.outside, "10.0.0.2", 20_000_000)
    transfer(site.outside, site.peer, "fd00::1", 1_000_000)


def test_jumbo_frames_pass_unfragmented(site: Site) -> None:
    site.veth(mtu=9000)
    site.open()
    request = site.connect(offload=False)
    assert request["interfaces"][0]["mtu"] == 9000
    assert "mtu 9000" in site.inside.run("ip", "link", "show", "cloche0")
    with sniffer(site.peer, "peer0") as frames:
        ping(site.outside, "10.0.0.1", "-s", "8900")
        assert max(len(frame) for frame in received(frames)) == 14 + 20 + 8 + 8900


def test_two_interfaces_keep_their_slots(site: Site) -> None:
    site.veth(0)
    site.veth(1)
    site.inside.ip("route add default via 10.1.0.1")
    site.peer.ip("address add 192.0.2.1/32 dev lo")
    site.open(3)
    request = site.connect()
    assert [(i["slot"], i["name"]) for i in request["interfaces"]] == [(0, "eth0"), (1, "eth1")]
    ping(site.outside, "10.0.0.1")
    ping(site.outside, "10.1.0.1")
    ping(site.outside, "192.0.2.1")
    transfer(site.outside, site.peer, "10.1.0.1", 1_000_000)


def on_a_parent(site: Site, kind: str) -> None:
    """An eth0 of *kind* on top of a device of the peer, as Docker's macvlan and ipvlan drivers."""
    try:
        site.peer.ip(
            "link add peer0 type veth peer name lower",
            "link set peer0 up",
            "link set lower up",
            "address add 10.0.0.1/24 dev peer0",
            f"link add link lower name eth0 type {kind}",
            f"link set eth0 netns {site.inside.path}",
        )
    except subprocess.CalledProcessError:
        pytest.skip(f"the kernel cannot make a device of type {kind}")
    site.inside.ip("link set eth0 up", "address add 10.0.0.2/24 dev eth0")
    site.open()
    site.connect()


def test_ipvlan_passes_both_ways(site: Site) -> None:
    on_a_parent(site, "ipvlan mode l2")
    ping(site.outside, "10.0.0.1")
    ping(site.peer, "10.0.0.2")
    transfer(site.outside, site.peer, "10.0.0.1", 5_000_000)
    with udp(site.peer, "10.0.0.1", 53) as name_server, udp(site.inside, "10.0.0.2") as resolver:
        assert ask(resolver, name_server) == b"answer"


def test_macvlan_delivers_unicast_and_multicast(site: Site) -> None:
    on_a_parent(site, "macvlan mode bridge")
    ping(site.outside, "10.0.0.1")
    ping(site.peer, "10.0.0.2")
    transfer(site.outside, site.peer, "10.0.0.1", 5_000_000)
    with site.outside.entered():
        member = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with site.peer.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with member, sender:
        member.bind(("", 5353))
        group = socket.inet_aton("239.1.2.3") + socket.inet_aton("10.0.0.2")
        member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        member.settimeout(PATIENCE_SECONDS)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.0.0.1"))
        sender.sendto(b"to the group", ("239.1.2.3", 5353))
        assert member.recv(100) == b"to the group"


@pytest.mark.parametrize(("server", "client"), [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")])
def test_resolver_inside_the_namespace_still_gets_answers(
    site: Site, server: str, client: str
) -> None:
    site.veth()
    site.open()
    site.connect()
    with udp(site.peer, server, 53) as name_server, udp(site.inside, client) as resolver:
        assert ask(resolver, name_server) == b"answer"
        assert 61440 <= resolver.getsockname()[1] <= 65535
    with tcp_server(site.peer, server, 53) as listener:
        for place in (site.inside, site.outside):
            with place.entered():
                connection = socket.create_connection((server, 53), timeout=PATIENCE_SECONDS)
            accepted, _ = listener.accept()
            with connection, accepted:
                connection.sendall(b"question")
                assert accepted.recv(100) == b"question"
                accepted.sendall(b"answer")
                assert connection.recv(100) == b"answer"


@pytest.mark.parametrize(("server", "client"), [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")])
def test_resolver_in_the_guest_may_use_any_port(site: Site, server: str, client: str) -> None:
    site.veth()
    site.open()
    site.connect()
    with sniffer(site.peer, "peer0") as frames, udp(site.peer, server, 53) as name_server:
        for port in (62000, 40000):
            with udp(site.outside, client, port) as resolver:
                assert ask(resolver, name_server) == b"answer"
        # the namespace's own stack saw the first answer, and has not complained by now
        unreachable = [frame for frame in received(frames) if is_unreachable(frame)]
        assert unreachable == []


def test_other_packets_do_not_reach_the_namespace_itself(site: Site) -> None:
    site.veth()
    site.open()
    site.connect()
    hidden = listen(site.inside, "10.0.0.2")
    with hidden, site.peer.entered(), pytest.raises(ConnectionRefusedError):
        socket.create_connection(hidden.getsockname(), timeout=PATIENCE_SECONDS)
    with udp(site.inside, "10.0.0.2", 5000) as hidden_udp, udp(site.peer, "10.0.0.1") as sender:
        hidden_udp.settimeout(0.3)
        sender.sendto(b"x", ("10.0.0.2", 5000))
        with pytest.raises(TimeoutError):
            hidden_udp.recv(10)


def test_next_vm_takes_over_the_namespace(site: Site) -> None:
    site.veth()
    site.open()
    site.connect()
    ping(site.outside, "10.0.0.1")
    site.close()
    site.outside.ip("link set lo up")
    site.open()
    site.connect()
    ping(site.outside, "10.0.0.1")
    ping(site.peer, "10.0.0.2")


def test_more_interfaces_than_taps_are_named(site: Site) -> None:
    site.veth(0)
    site.veth(1)
    site.open(1)
    with pytest.raises(ClocheError, match=r"interface eth1: .* 2 interfaces .*the VM 1") as caught:
        site.connect()
    assert "attach at most 1 networks" in caught.value.hint


def test_second_vm_in_a_namespace_is_refused(site: Site) -> None:
    site.open(2)
    with pytest.raises(ClocheError, match="cloche0") as error, site.inside.entered():
        open_taps(2)
    assert "another VM" in error.value.hint


def test_the_machine_itself_is_never_redirected(site: Site) -> None:
    """Told by process 1 being in the same namespace: here a process 1 of the test's own."""
    site.veth()
    call = (
        "from cloche.host import network, taps\nnetwork.connect(network.scan(), taps.open_taps(1))"
    )
    argv = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", call]
    with pytest.raises(subprocess.CalledProcessError) as error:
        site.inside.run(*argv)
    assert "host's own network namespace" in error.value.stderr
    assert "mirred" not in site.inside.run("tc", "filter", "show", "dev", "eth0", "ingress")


def test_taps_go_with_their_descriptors(site: Site) -> None:
    site.open(2)
    assert "cloche1" in site.inside.run("ip", "link")
    for tap in site.taps:
        tap.close()
    assert "cloche" not in site.inside.run("ip", "link")


def sniffer(place: Namespace, device: str) -> socket.socket:
    """A socket that gets a copy of every frame that arrives at *device*."""
    with place.entered():
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        made.bind((device, 0))
    made.setblocking(False)
    return made


def received(frames: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(frames.recv(70000))
        except BlockingIOError:
            return found


def is_unreachable(frame: bytes) -> bool:
    """An ICMP or ICMPv6 destination unreachable."""
    (ethertype,) = struct.unpack_from(">H", frame, 12)
    if ethertype == 0x86DD:
        return frame[20] == 58 and frame[54] == 1
    return ethertype == 0x0800 and frame[23] == 1 and frame[34] == 3


def udp(place: Namespace, address: str, port: int = 0) -> socket.socket:
    with place.entered():
        made = socket.socket(_family(address), socket.SOCK_DGRAM)
    made.settimeout(PATIENCE_SECONDS)
    made.bind((address, port))
    return made


def tcp_server(place: Namespace, address: str, port: int) -> socket.socket:
    with place.entered():
        made = socket.create_server((address, port), family=_family(address))
    made.settimeout(PATIENCE_SECONDS)
    return made


def ask(client: socket.socket, server: socket.socket) -> bytes:
    client.sendto(b"question", server.getsockname()[:2])
    question, sender = server.recvfrom(100)
    assert question == b"question"
    server.sendto(b"answer", sender)
    return client.recv(100)
