"""Which addresses are the host's own, and which of them guests may ask for names."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest

from cloche.vmm.loopback import destination, is_loopback, name_servers


def v4(address: str, port: int = 80) -> bytes:
    return struct.pack("=H", 2) + struct.pack(">H", port) + socket.inet_aton(address) + bytes(8)


def v6(address: str, port: int = 80) -> bytes:
    packed = socket.inet_pton(socket.AF_INET6, address)
    return struct.pack("=H", 10) + struct.pack(">HI", port, 7) + packed + struct.pack("=I", 0)


@pytest.mark.parametrize(
    ("address", "own"),
    [
        (v4("127.0.0.1"), True),
        (v4("127.255.255.254"), True),
        (v4("0.0.0.0"), True),
        (v4("128.0.0.1"), False),
        (v4("10.0.2.2"), False),
        (v6("::1"), True),
        (v6("::"), True),
        (v6("::ffff:127.0.0.53"), True),
        (v6("::ffff:10.0.0.1"), False),
        (v6("::2"), False),
        (v6("fec0::2"), False),
        (v6("100::1"), False),
    ],
)
def test_the_hosts_own(address: bytes, own: bool) -> None:
    named = destination(address)
    assert named is not None
    assert named[1] == 80
    assert is_loopback(named[0]) == own


@pytest.mark.parametrize("size", range(8))
def test_what_is_too_short_names_nothing(size: int) -> None:
    assert destination(v4("127.0.0.1")[:size]) is None
    assert destination(v6("::1")[: size + 16]) is None


@pytest.mark.parametrize("family", [0, 1, 16, 17, 40, 65535])
def test_other_families_name_nothing(family: int) -> None:
    assert destination(struct.pack("=H", family) + bytes(126)) is None


def test_name_servers(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(
        "# nameserver 1.1.1.1\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\n"
        "nameserver\nnameserver nonsense\nsearch nameserver\n"
    )
    link_local = socket.inet_pton(socket.AF_INET6, "fe80::1")
    assert name_servers(str(file)) == [bytes([127, 0, 0, 53]), link_local]
    assert name_servers(str(tmp_path / "nothing")) == []
