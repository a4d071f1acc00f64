"""linux.netDevices: network devices of the host that move into the container's namespace.

There they are adopted like all others (cloche.host.network). The kernel gives physical ones back to
the host when the namespace ends, and takes virtual ones down; the specification has it so.
"""

from __future__ import annotations

import json
import os

from cloche.base import syscalls
from cloche.base.errors import ClocheError, ConfigError
from cloche.base.spawn import run
from cloche.model.problems import quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Mover:
    """Moves devices from the namespace in which it is made to the one in which it is used."""

    def __init__(self) -> None:
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def move(self, devices: dict[str, str]) -> None:
        """Move *devices*, name on the host → name in the container (empty: the same).

        With their addresses of global scope, and up. ClocheError, the field first, for one that
        is not there, cannot be moved, or has a name that is taken.
        """
        there = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        for name, new_name in devices.items():
            try:
                self._move_one(name, new_name or name, there)
            except ClocheError as error:
                field = f"$.linux.netDevices[{quoted(name)}]"
                raise ConfigError(f"{field}: {error.message}") from None
        os.close(there)
        os.close(self._home)

    def _move_one(self, name: str, new_name: str, there: int) -> None:
        before = {link["ifname"] for link in _links()}
        syscalls.setns(self._home, syscalls.CLONE_NEWNET)
        try:
            (link,) = _links("dev", name)
            # A path: what a pid would name is the namespace in which we are just now.
            target = f"/proc/{os.getpid()}/fd/{there}"
            run(["ip", "link", "set", "dev", name, "netns", target, "name", new_name])
        finally:
            syscalls.setns(there, syscalls.CLONE_NEWNET)
        # The kernel has put a number for %d.
        (own,) = {link["ifname"] for link in _links()} - before
        for address in link["addr_info"]:
            if address["scope"] == "global" and not address.get("dynamic"):
                run(["ip", "address", "add", *_words(address), "dev", own])
        run(["ip", "link", "set", "dev", own, "up"])


def _words(address: dict[str, Any]) -> list[str]:
    words = [f"{address['local']}/{address['prefixlen']}"]
    if "address" in address:  # of the other end
        words = [address["local"], "peer", f"{address['address']}/{address['prefixlen']}"]
    if "broadcast" in address:
        words += ["broadcast", address["broadcast"]]
    return words + (["nodad"] if address["family"] == "inet6" else [])


def _links(*words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(["ip", "-json", "address", "show", *words]))
    return [link for link in found if link]
