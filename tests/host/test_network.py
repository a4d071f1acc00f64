"""The network path of a sandbox in real namespaces: an engine's peer, the sandbox, a guest."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cloche.base.errors import ClocheError
from cloche.host.network import Network, connect, scan
from cloche.host.taps import Tap, open_taps

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
            client = socket.create_connection(server.getsockname()[:2], timeout=30)
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
