"""The guest played by a third network namespace: what QEMU and the agent would do, without a VM.

Its network cards are taps whose frames, virtio headers included, are copied to and from the taps
that `open_taps` made, as QEMU does between a tap and a virtqueue. Its addresses and routes come
from the `network` request alone.
"""

from __future__ import annotations

import fcntl
import os
import select
import threading
from typing import Any

from cloche.host.taps import Tap, open_taps

from .conftest import Namespace

_TUNSETOFFLOAD = 0x400454D0
_TUN_F_CSUM_TSO4_TSO6 = 0x01 | 0x02 | 0x04


class Guest:
    """Plays the guest whose network cards are *taps*; *offload* as QEMU with a modern guest."""

    def __init__(self, namespace: Namespace, taps: list[Tap], *, offload: bool = True) -> None:
        self.namespace = namespace
        self._stop_read, self._stop_write = os.pipe()
        with namespace.entered():
            self.cards = open_taps(len(taps))
        self._peers: dict[int, int] = {}
        for tap, card in zip(taps, self.cards, strict=True):
            self._peers |= {tap.fd: card.fd, card.fd: tap.fd}
            if offload:
                for fd in (tap.fd, card.fd):
                    fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM_TSO4_TSO6)
        self._pump = threading.Thread(target=self._copy, daemon=True)
        self._pump.start()

    def apply(self, request: dict[str, Any]) -> None:
        """Do what the agent does with a `network` request."""
        for interface in request["interfaces"]:
            card, name = self.cards[interface["slot"]].name, interface["name"]
            mac = interface["mac"].hex(":")
            self.namespace.ip(
                f"link set {card} name {name} address {mac} mtu {interface['mtu']}",
                f"link set {name} up",
                *(_address(name, *entry) for entry in interface["addresses"]),
                *(
                    f"neighbour replace {ip} lladdr {mac.hex(':')} dev {name} nud permanent"
                    for ip, mac in interface["neighbours"]
                ),
            )
        self.namespace.ip(*(_route(route) for route in request["routes"]))

    def close(self) -> None:
        os.write(self._stop_write, b"x")
        self._pump.join()
        for card in self.cards:
            card.close()
        os.close(self._stop_read)
        os.close(self._stop_write)

    def _copy(self) -> None:
        poll = select.poll()
        for fd in (*self._peers, self._stop_read):
            poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._stop_read:
                    return
                self._copy_frames(fd)

    def _copy_frames(self, fd: int) -> None:
        try:
            for _ in range(64):
                os.write(self._peers[fd], os.read(fd, 0x11000))
        except BlockingIOError:
            pass
        except OSError:  # the other side is not up yet: a card without a driver drops frames
            pass


def _address(name: str, ip: str, prefix: int, broadcast: str | None) -> str:
    suffix = f"broadcast {broadcast}" if broadcast else ""
    return f"address add {ip}/{prefix} {suffix} dev {name} {'nodad' if ':' in ip else ''}"


def _route(route: dict[str, Any]) -> str:
    words = ["route replace", f"{route['destination'] or '0.0.0.0'}/{route['prefix']}"]
    if route["gateway"]:
        words += ["via", route["gateway"]]
    words += ["dev", route["interface"]]
    if route["source"]:
        words += ["src", route["source"]]
    if route["metric"]:
        words += ["metric", str(route["metric"])]
    if ":" not in f"{route['destination']}{route['gateway']}":
        words += ["scope", str(route["scope"])]
    if route["onlink"]:
        words.append("onlink")
    return " ".join(words)
