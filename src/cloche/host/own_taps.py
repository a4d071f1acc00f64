"""Taps that lead nowhere, for VMs of which others are made, and what QEMU has set them to.

What a guest leaves to its cards it asks once, when it boots. So a VM that is to be cloned for taps
has to boot with taps (docs/network.md).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from ctypes import addressof, create_string_buffer
from typing import TYPE_CHECKING

from cloche.base import syscalls
from cloche.host.taps import open_taps

if TYPE_CHECKING:
    from collections.abc import Iterator

# <linux/if_tun.h>
_TUNGETVNETHDRSZ, _TUNGETIFF, _TUNGETDEVNETNS = 0x800454D7, 0x800454D2, 0x54E3
# What set_offload() in the kernel's drivers/net/tun.c makes of each TUN_F_ flag.
_FEATURES = {
    "tx-checksum-ip-generic": 0x01,
    "tx-tcp-segmentation": 0x02,
    "tx-tcp6-segmentation": 0x04,
    "tx-tcp-ecn-segmentation": 0x08,
    "tx-udp-segmentation": 0x60,  # TUN_F_USO4 and TUN_F_USO6, which it takes together only
}
# <linux/sockios.h>, <linux/ethtool.h>
_SIOCETHTOOL = 0x8946
_GSTRINGS, _GSSET_INFO, _GFEATURES = 0x1B, 0x37, 0x3A
_SS_FEATURES, _NAME_SIZE = 4, 32


@contextlib.contextmanager
def own_taps(count: int) -> Iterator[list[int]]:
    """Descriptors of *count* taps in a network namespace that goes with them.

    ClocheError where none can be made.
    """
    with _network_kept():
        syscalls.unshare(syscalls.CLONE_NEWNET)
        taps = open_taps(count)
    try:
        yield [tap.fd for tap in taps]
    finally:
        for tap in taps:
            tap.close()


@contextlib.contextmanager
def _network_kept() -> Iterator[None]:
    """Be in this network namespace again afterwards, whichever is entered meanwhile."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        syscalls.setns(own, syscalls.CLONE_NEWNET)
        os.close(own)


def settings_of(tap: int) -> tuple[int, int]:
    """What QEMU has set a tap to: the size of struct virtio_net_hdr, and the TUN_F_ flags.

    The flags can be set, but not asked for: the device's features tell them. OSError on failure.
    """
    (header,) = struct.unpack("i", fcntl.ioctl(tap, _TUNGETVNETHDRSZ, bytes(4)))
    name = fcntl.ioctl(tap, _TUNGETIFF, bytes(40))[:16]
    theirs = fcntl.ioctl(tap, _TUNGETDEVNETNS)
    try:
        with _network_kept():
            syscalls.setns(theirs, syscalls.CLONE_NEWNET)
            features = _active_features(name)
    finally:
        os.close(theirs)
    return int(header), sum(bit for name, bit in _FEATURES.items() if name in features)


def _active_features(device: bytes) -> set[str]:
    """The names of a network device's features that are on, as `ethtool -k` tells them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:

        def ask(request: bytes) -> bytes:
            buffer = create_string_buffer(request, len(request))
            ifreq = struct.pack("16sQ16x", device, addressof(buffer))
            fcntl.ioctl(control, _SIOCETHTOOL, ifreq)
            return buffer.raw

        info = ask(struct.pack("=IIQI", _GSSET_INFO, 0, 1 << _SS_FEATURES, 0))
        count = int.from_bytes(info[16:20], "little")
        strings = ask(
            struct.pack("=III", _GSTRINGS, _SS_FEATURES, count) + bytes(count * _NAME_SIZE)
        )
        blocks = -(-count // 32)
        found = ask(struct.pack("=II", _GFEATURES, blocks) + bytes(blocks * 16))
    names = [
        strings[start : start + _NAME_SIZE].split(b"\0", 1)[0].decode()
        for start in range(12, 12 + count * _NAME_SIZE, _NAME_SIZE)
    ]
    # struct ethtool_get_features_block: available, requested, active, never changed
    words = struct.unpack_from(f"<{blocks * 4}I", found, 8)
    return {name for bit, name in enumerate(names) if words[bit // 32 * 4 + 2] >> bit % 32 & 1}
