"""The guest's network: the engine's interfaces adopted, its name server on loopback relayed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloche.base.errors import ClocheError
from cloche.host.dns import DnsRelay, loopback_nameservers
from cloche.host.link_events import LinkEvents
from cloche.host.network import as_told, attach, check_room, connect, scan, user_mode_network

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.base.loop import Future, Loop
    from cloche.heart.agent import Agent
    from cloche.host.network import Interface, Network
    from cloche.host.taps import Tap


class GuestNetwork:
    """What one guest is connected to; its methods must run in the container's namespace."""

    def __init__(self, loop: Loop, agent: Agent) -> None:
        self._loop = loop
        self._agent = agent
        self._dns: DnsRelay | None = None
        self._taps: list[Tap] = []
        # As the guest has been told of them, interfaces by their names.
        self._interfaces: dict[str, dict[str, Any]] = {}
        self._routes: list[dict[str, Any]] = []
        self._told: list[str] = []

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
        self._told = found.warnings
        if not found.interfaces:
            return None
        request = connect(found, taps)
        self._taps = taps
        self._remember(request["interfaces"], found.routes)
        return {**request, "dns_relay": self._relay(resolv_conf)}

    def follow(self, resolv_conf: Callable[[], str], complain: Callable[[str], object]) -> None:
        """From now on what is attached to the namespace, or taken away, is so in the guest.

        What cannot be done is told to *complain*. A guest that had no network at first gets none.
        """
        if self._taps:
            LinkEvents(self._loop, lambda: self._adapt(resolv_conf, complain))

    def _adapt(self, resolv_conf: Callable[[], str], complain: Callable[[str], object]) -> None:
        try:
            found = scan()
            for warning in found.warnings:
                if warning not in self._told:
                    complain(warning)
            self._told = found.warnings
            change = self._change_to(found)
        except (ClocheError, OSError) as error:
            complain(str(error))
            return
        change["dns_relay"] = self._relay(resolv_conf())
        if any(change.values()):
            self._agent.call("network_change", change).on_done(lambda done: _tell(done, complain))

    def _change_to(self, found: Network) -> dict[str, Any]:
        """The `network_change` request that leads to *found*; ClocheError where none does.

        An interface that has changed goes, and comes again.
        """
        kept: dict[str, dict[str, Any]] = {}
        new: list[Interface] = []
        for interface in found.interfaces:
            known = self._interfaces.get(interface.name)
            if known is not None and known == as_told(known["slot"], interface):
                kept[interface.name] = known
            else:
                new.append(interface)
        check_room(found.interfaces, len(self._taps))
        used = {each["slot"] for each in kept.values()}
        free = [slot for slot in range(len(self._taps)) if slot not in used]
        told = attach(list(zip(free, new, strict=False)), self._taps)
        gone = [each for name, each in self._interfaces.items() if name not in kept]
        change = {
            "gone": [each["slot"] for each in gone],
            "old_routes": [
                route
                for route in self._routes
                if route not in found.routes and route["interface"] in kept
            ],
            "interfaces": told,
            "routes": [
                route
                for route in found.routes
                if route not in self._routes or route["interface"] not in kept
            ],
        }
        self._remember([*kept.values(), *told], found.routes)
        return change

    def _remember(self, interfaces: list[dict[str, Any]], routes: list[dict[str, Any]]) -> None:
        self._interfaces = {each["name"]: each for each in interfaces}
        self._routes = routes

    def _relay(self, resolv_conf: str) -> list[str]:
        """The name servers on loopback, as far as they are new; they are answered for from now."""
        servers = loopback_nameservers(resolv_conf)
        if self._dns is None:
            self._dns = DnsRelay(self._loop, [], self._answer)
        return self._dns.add(servers)

    def ask(self, fields: dict[str, Any]) -> None:
        """The guest has a DNS query; the fields of its event."""
        if self._dns is not None:
            query, server = int(fields["query"]), str(fields["server"])
            self._dns.query(query, server, bool(fields["tcp"]), bytes(fields["data"]))

    def _answer(self, query: int, data: bytes) -> None:
        self._agent.call("dns_reply", {"query": query, "data": data})


def _tell(done: Future, complain: Callable[[str], object]) -> None:
    if done.error is not None:
        complain(f"network: the guest refuses a change: {done.error}")
