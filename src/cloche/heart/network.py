"""The guest's network: the engine's interfaces adopted, its name server on loopback relayed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloche.host.dns import DnsRelay, loopback_nameservers
from cloche.host.network import connect, scan, user_mode_network

if TYPE_CHECKING:
    from cloche.base.loop import Loop
    from cloche.heart.agent import Agent
    from cloche.host.taps import Tap


class GuestNetwork:
    """What one guest is connected to; its methods must run in the container's namespace."""

    def __init__(self, loop: Loop, agent: Agent) -> None:
        self._loop = loop
        self._agent = agent
        self._dns: DnsRelay | None = None

    def user_mode(self, resolv_conf: str) -> dict[str, Any]:
        """The `network` request for QEMU's user-mode network."""
        return {**user_mode_network(), "dns_relay": self._relay(resolv_conf)}

    def adopt(
        self, taps: list[Tap], resolv_conf: str, warnings: list[str]
    ) -> dict[str, Any] | None:
        """The `network` request for what the namespace holds; None where it holds nothing.

        *resolv_conf* is the container's: name servers on loopback in it are relayed.
        """
        found = scan()
        warnings += found.warnings
        if not found.interfaces:
            return None
        return {**connect(found, taps), "dns_relay": self._relay(resolv_conf)}

    def _relay(self, resolv_conf: str) -> list[str]:
        """The name servers on loopback, which are answered for from now on."""
        servers = loopback_nameservers(resolv_conf)
        if servers:
            self._dns = DnsRelay(self._loop, servers, self._answer)
        return servers

    def ask(self, fields: dict[str, Any]) -> None:
        """The guest has a DNS query; the fields of its event."""
        if self._dns is not None:
            query, server = int(fields["query"]), str(fields["server"])
            self._dns.query(query, server, bool(fields["tcp"]), bytes(fields["data"]))

    def _answer(self, query: int, data: bytes) -> None:
        self._agent.call("dns_reply", {"query": query, "data": data})
