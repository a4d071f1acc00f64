"""Tap devices: the ends of the guest's network cards in the container's network namespace.

Used before QEMU is started, so it imports next to nothing. A tap lives as long as a descriptor of
it is open, or its namespace, so nothing is left behind by a crash.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from cloche.base.errors import ClocheError

TAP_PREFIX = "cloche"

_TUN_DEVICE = "/dev/net/tun"
# <linux/if_tun.h>
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFREQ = "16sH22x"

_HINTS = {
    errno.ENOENT: "load the module: modprobe tun",
    errno.ENODEV: "load the module: modprobe tun",
    errno.EPERM: "run as root: a tap needs CAP_NET_ADMIN in its network namespace",
    errno.EACCES: "run as root: a tap needs CAP_NET_ADMIN in its network namespace",
    errno.EBUSY: "another VM serves this network namespace; two VMs cannot share one",
}


class Tap:
    """One tap device: *name* in the namespace it was made in, *fd* to read and write frames.

    Every frame is preceded by a struct virtio_net_hdr of 10 bytes (IFF_VNET_HDR), so that
    checksums and segmentation can be left to the receiver.
    """

    __slots__ = ("fd", "name")

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd

    def close(self) -> None:
        """Close the descriptor; the device goes with its last one. Harmless a second time."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def open_taps(count: int, *, persistent: bool = False) -> list[Tap]:
    """Make the taps cloche0, cloche1 … in the current network namespace.

    Their descriptors are not inherited by programs, and non-blocking as QEMU wants them.
    ClocheError when a tap cannot be made; none is left then. *persistent* ones live as long as
    the namespace, which must be our own: whoever closes a tap that is not waits 20 ms for the
    kernel to forget it, the namespace's end lets the kernel do that by itself.
    """
    taps: list[Tap] = []
    try:
        for number in range(count):
            taps.append(_open_tap(f"{TAP_PREFIX}{number}"))
            if persistent:
                fcntl.ioctl(taps[-1].fd, _TUNSETPERSIST, 1)
    except OSError as error:
        for tap in taps:
            tap.close()
        raise ClocheError(
            f"network: cannot make the tap {TAP_PREFIX}{len(taps)}: {error.strerror}",
            hint=_HINTS.get(error.errno or 0, ""),
        ) from error
    return taps


def _open_tap(name: str) -> Tap:
    fd = os.open(_TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack(_IFREQ, name.encode(), flags))
    except OSError:
        os.close(fd)
        raise
    return Tap(name, fd)
