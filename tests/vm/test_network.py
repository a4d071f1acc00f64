"""The guest's cards: what they leave to the host, and that it arrives whole all the same.

Counts of packets, not times: with its checksums and its segmentation left to the host, a guest
sends and gets packets of up to 64 KiB, whatever the MTU.
"""

from __future__ import annotations

import hashlib
import http.client
import random
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.dockerd import wait_until
from engine.patience import PATIENCE_SECONDS
from host.conftest import Namespace

from .bundles import Bundle
from .runtime import Container, Runtime
from .starts import each_machine

MIB = 1 << 20
SIZE = 10 * MIB
DATA = random.Random(7).randbytes(SIZE)
DIGEST = hashlib.sha256(DATA).hexdigest()
MTU = 1500
# Bits of a virtio-net device's features (virtio 1.2, 5.1.3).
OFFLOADS = {
    **{"CSUM": 0, "GUEST_CSUM": 1, "GUEST_TSO4": 7, "GUEST_TSO6": 8},
    **{"HOST_TSO4": 11, "HOST_TSO6": 12, "MRG_RXBUF": 15},
}
OUTSIDE, INSIDE = "10.77.0.1", "10.77.0.2"
WEB = "httpd -f -p 80 -h /www"


@pytest.fixture
def outside(namespace: Callable[[], Namespace]) -> Namespace:
    """The engine's side, where the containers' veths end."""
    return namespace()


@pytest.fixture
def inside(namespace: Callable[[], Namespace], outside: Namespace, bundle: Bundle) -> Namespace:
    """The namespace that the bundle joins, with eth0, whose other end has an address outside."""
    made = namespace()
    tie(outside, made, "eth0", INSIDE, MTU)
    outside.ip(f"address add {OUTSIDE}/24 dev eth0")
    join(bundle, made)
    return made


def tie(outside: Namespace, inside: Namespace, name: str, address: str, mtu: int) -> None:
    """A veth between both, of the same name on either side; the inner one gets the *address*."""
    outside.ip(
        f"link add {name} mtu {mtu} type veth peer name far mtu {mtu} netns {inside.path}",
        f"link set {name} up",
    )
    inside.ip(
        f"link set far name {name}",
        f"address add {address}/24 dev {name}",
        f"link set {name} up",
    )


def join(bundle: Bundle, namespace: Namespace) -> None:
    """Have *bundle* join the network namespace, and serve DATA as a file over HTTP if asked."""
    for each in bundle.linux["namespaces"]:
        if each["type"] == "network":
            each["path"] = namespace.path
    (bundle.rootfs / "www").mkdir()
    (bundle.rootfs / "www" / "data").write_bytes(DATA)
    bundle.capabilities("CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE", "CAP_CHOWN")


def packets(container: Container, device: str = "eth0") -> dict[str, int]:
    """What the guest's device has counted: packets as the driver hands them over."""
    folder = f"/sys/class/net/{device}/statistics"
    names = ("rx_packets", "tx_packets")
    values = container.sh(f"cd {folder} && cat {' '.join(names)}").output.split()
    return {name: int(value) for name, value in zip(names, values, strict=True)}


@contextmanager
def served(namespace: Namespace, address: str) -> Iterator[int]:
    """A server that sends DATA to whoever connects; yields its port."""
    with namespace.entered():
        listener = socket.create_server((address, 0))
    listener.settimeout(PATIENCE_SECONDS)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(DATA)

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    with listener:
        yield listener.getsockname()[1]
        server.join()


def fetch(namespace: Namespace, address: str) -> bytes:
    """DATA, as a container's web server gives it."""
    connection = http.client.HTTPConnection(address, timeout=PATIENCE_SECONDS)
    with namespace.entered():
        wait_until(lambda: _listens(address), "the container's web server listens")
        connection.request("GET", "/data")
    try:
        return connection.getresponse().read()
    finally:
        connection.close()


def _listens(address: str) -> bool:
    try:
        socket.create_connection((address, 80), timeout=PATIENCE_SECONDS).close()
    except OSError:
        return False
    return True


def average(before: dict[str, int], after: dict[str, int], name: str) -> float:
    """Bytes of DATA per packet."""
    return SIZE / (after[name] - before[name])


@each_machine
def test_checksums_and_segments_are_the_hosts(
    cloche: Runtime, bundle: Bundle, outside: Namespace, inside: Namespace
) -> None:
    container = cloche.start(bundle.sh(WEB))
    bits = container.sh("cat /sys/class/net/eth0/device/features").output
    assert [name for name, bit in OFFLOADS.items() if bits[bit] != "1"] == []

    before = packets(container)
    with served(outside, OUTSIDE) as port:
        digest = container.sh(f"nc {OUTSIDE} {port} </dev/null | sha256sum").output.split()[0]
    arrived = packets(container)
    assert digest == DIGEST
    assert average(before, arrived, "rx_packets") > 2 * MTU

    assert fetch(outside, INSIDE) == DATA
    assert average(arrived, packets(container), "tx_packets") > 2 * MTU
    assert inside.fd >= 0


@pytest.mark.parametrize("mtu", [1280, 9000])
def test_from_one_container_to_the_other(
    cloche: Runtime,
    new_bundle: Callable[[], Bundle],
    namespace: Callable[[], Namespace],
    outside: Namespace,
    mtu: int,
) -> None:
    """Over a bridge, as from one guest's card to the other's."""
    outside.ip("link add bridge0 type bridge", "link set bridge0 up")
    containers = []
    for number, argv in enumerate((WEB, "sleep 1000"), 1):
        own, bundle = namespace(), new_bundle()
        tie(outside, own, f"eth{number}", f"10.78.0.{number}", mtu)
        outside.ip(f"link set eth{number} master bridge0")
        join(bundle, own)
        containers.append(cloche.start(bundle.sh(argv)))
    server, client = containers
    assert client.sh("cat /sys/class/net/eth2/mtu").output == str(mtu)
    before = packets(server, "eth1"), packets(client, "eth2")
    # The server's program may have been started only just now.
    wget = "until wget -q -O /tmp/data http://10.78.0.1/data; do :; done; sha256sum /tmp/data"
    assert client.sh(f"mkdir -p /tmp; {wget}").output.split()[0] == DIGEST
    after = packets(server, "eth1"), packets(client, "eth2")
    for index, name in enumerate(("tx_packets", "rx_packets")):
        assert average(before[index], after[index], name) > 9000
    # What has no room in one segment goes in several, or in none where that is forbidden.
    assert client.sh(f"ping -c 1 -s {3 * mtu} 10.78.0.1").code == 0


@pytest.mark.parametrize("block", [512, 1428, 8000, 65464])
def test_datagrams_arrive_whole(
    cloche: Runtime, bundle: Bundle, outside: Namespace, inside: Namespace, block: int
) -> None:
    """Over TFTP, there and back: whoever gets a datagram whose checksum is wrong forgets it."""
    container = cloche.start(bundle.args("sleep", "1000"))
    data = DATA[: 2 * block + 1]
    with outside.entered():
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind((OUTSIDE, 69))
    server.settimeout(PATIENCE_SECONDS)
    tftp = f"tftp -b {block} -l /got -r it"
    with server:
        client = cloche.popen("exec", container.id, *f"{tftp} -g {OUTSIDE}".split())
        send_by_tftp(server, data)
        assert client.wait(PATIENCE_SECONDS) == 0, client.communicate()
        assert (bundle.rootfs / "got").read_bytes() == data
        client = cloche.popen("exec", container.id, *f"{tftp} -p {OUTSIDE}".split())
        assert receive_by_tftp(server) == data
        assert client.wait(PATIENCE_SECONDS) == 0, client.communicate()
    assert inside.fd >= 0


def tftp_request(server: socket.socket) -> tuple[tuple[str, int], int, bytes]:
    """Who asks; the size of a block; the options as they are to be confirmed (RFC 2347, 2348)."""
    request, client = server.recvfrom(65536)
    _, _, *options = request[2:].split(b"\0")[:-1]
    values = dict(zip(options[::2], options[1::2], strict=True))
    size = values.get(b"blksize")
    confirmed = b"\0\6blksize\0" + size + b"\0" if size else b""
    return client, int(size or 512), confirmed


def send_by_tftp(server: socket.socket, data: bytes) -> None:
    """Answer one request to read; what is sent again answers what was asked again."""
    client, size, confirmed = tftp_request(server)
    blocks = [confirmed] if confirmed else []
    for number, start in enumerate(range(0, len(data) + 1, size), 1):
        blocks.append(b"\0\3" + number.to_bytes(2, "big") + data[start : start + size])
    at = 0
    while at < len(blocks):
        server.sendto(blocks[at], client)
        answer, client = server.recvfrom(65536)
        if answer[:2] == b"\0\4":
            at = int.from_bytes(answer[2:], "big") + bool(confirmed)


def receive_by_tftp(server: socket.socket) -> bytes:
    """Answer one request to write; returns what was written."""
    client, size, confirmed = tftp_request(server)
    answer, blocks = confirmed or b"\0\4\0\0", dict[int, bytes]()
    while not blocks or len(blocks[len(blocks)]) == size:
        server.sendto(answer, client)
        block, client = server.recvfrom(65536)
        if block[:2] == b"\0\3":
            number = int.from_bytes(block[2:4], "big")
            blocks[number] = block[4:]
            answer = b"\0\4" + block[2:4]
    server.sendto(answer, client)
    return b"".join(blocks.values())


LEASE = """\
start 10.77.0.50
end 10.77.0.50
interface eth0
lease_file {folder}/leases
pidfile {folder}/udhcpd.pid
opt subnet 255.255.255.0
"""


def test_dhcp_reads_packets_as_they_come(
    cloche: Runtime, bundle: Bundle, outside: Namespace, inside: Namespace, folder: Path
) -> None:
    """Its client takes answers from the card itself, where nobody has checked or made checksums."""
    (folder / "udhcpd.conf").write_text(LEASE.format(folder=folder))
    (folder / "leases").touch()
    script = bundle.rootfs / "told"
    script.write_text('#!/bin/sh\necho "$1 $ip"\n')
    script.chmod(0o755)
    with outside.entered():
        server = subprocess.Popen(["busybox", "udhcpd", "-f", str(folder / "udhcpd.conf")])
    try:
        container = cloche.start(bundle.args("sleep", "1000"))
        told = container.sh("udhcpc -i eth0 -n -q -f -s /told").lines
    finally:
        server.kill()
        server.wait()
    assert told[-1] == "bound 10.77.0.50"
    assert inside.fd >= 0


def test_a_network_attached_later_has_them_too(
    cloche: Runtime, bundle: Bundle, outside: Namespace, inside: Namespace
) -> None:
    container = cloche.start(bundle.args("sleep", "1000"))
    tie(outside, inside, "eth1", "10.79.0.2", 9000)
    outside.ip("address add 10.79.0.1/24 dev eth1")
    wait_until(
        lambda: "10.79.0.2" in container.sh("ip -o -4 address show").output, "the guest has eth1"
    )
    before = packets(container, "eth1")
    with served(outside, "10.79.0.1") as port:
        digest = container.sh(f"nc 10.79.0.1 {port} </dev/null | sha256sum").output.split()[0]
    assert digest == DIGEST
    assert average(before, packets(container, "eth1"), "rx_packets") > 2 * 9000
