"""The guest's network: the engine's interfaces adopted, its name server on loopback relayed."""

from __future__ import annotations

from cloche.base.errors import ClocheError
from cloche.host.dns import LATE_RESOLVER, DnsRelay, loopback_nameservers
from cloche.host.link_events import LinkEvents
from cloche.host.network import (
    as_told,
    attach,
    connect,
    loopback_only,
    no_room,
    scan,
    user_mode_network,
)
from cloche.host.redirect import untie

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

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
        # The last change was applied in part.
        self._needs_resync = False

    def user_mode(self, resolv_conf: str) -> dict[str, Any]:
        """The `network` request for QEMU's user-mode network."""
        return {**user_mode_network(), "dns_relay": self._relay(resolv_conf)}

    def adopt(
        self, taps: list[Tap], resolv_conf: str, warnings: list[str]
    ) -> dict[str, Any] | None:
        """The `network` request for what the namespace holds; None where it is a plain, empty one.

        *resolv_conf* is the container's: name servers on loopback in it are relayed.
        """
        found = scan()
        warnings += found.warnings
        self._told = found.warnings
        if not found.interfaces:
            return loopback_only()
        request = connect(found, taps)
        self._taps = taps
        self._remember(request["interfaces"], found.routes)
        return {**request, "dns_relay": self._relay(resolv_conf)}

    def follow(self, resolv_conf: Callable[[], str], complain: Callable[[str], object]) -> None:
        """From now on what is attached to the namespace, or taken away, is so in the guest.

        What cannot be done is told to *complain*. A guest that had no network at first gets none.
        """
        if not self._taps:
            return
        try:
            LinkEvents(self._loop, lambda: self._adapt(resolv_conf, complain))
        except OSError as error:
            complain(f"network: changes are not followed: {error}")

    def _adapt(self, resolv_conf: Callable[[], str], complain: Callable[[str], object]) -> bool:
        """Have the guest follow; whether there is anything that has changed for it."""
        is_whole = self._needs_resync
        try:
            found = scan(strict=False)
            change = self._change_to(found)
            # Others in that file may be the container's own by now.
            late = {LATE_RESOLVER} & {*loopback_nameservers(resolv_conf())}
            change["dns_relay"] = self._answer_for([*late])
            for warning in found.warnings:
                if warning not in self._told:
                    complain(warning)
            self._told = found.warnings
            if any(change.values()):
                done = self._agent.call("network_change", change)
                done.on_done(lambda done: self._done(done, is_whole, complain))
        except (ClocheError, OSError, ValueError, KeyError, TypeError) as error:
            # A namespace as nobody has seen one yet must not cost a container that runs.
            complain(f"network: a change is not followed: {error}")
            return False
        return any(change.values())

    def _change_to(self, found: Network) -> dict[str, Any]:
        """The `network_change` request that leads to *found*; what cannot be is warned of there.

        An interface that has changed goes, and comes again.
        """
        if len(found.interfaces) > len(self._taps):
            found.warnings.append(str(no_room(found.interfaces, len(self._taps))))
        kept = {
            known["name"]: known
            for interface in found.interfaces
            if (known := self._interfaces.get(interface.name)) is not None
            and known == as_told(known["slot"], interface)
        }
        is_same = len(kept) == min(len(found.interfaces), len(self._taps))
        if is_same and len(kept) == len(self._interfaces) and found.routes == self._routes:
            return {}
        old_routes = self._routes
        if self._needs_resync:
            kept, old_routes = {}, []
        gone = {name: each["slot"] for name, each in self._interfaces.items() if name not in kept}
        untie([*gone])
        new = [interface for interface in found.interfaces if interface.name not in kept]
        told = self._attach(new, {each["slot"] for each in kept.values()}, found.warnings)
        here = {*kept, *(each["name"] for each in told)}
        routes = [route for route in found.routes if route["interface"] in here]
        self._remember([*kept.values(), *told], found.routes)
        return {
            "gone": [*range(len(self._taps))] if self._needs_resync else [*gone.values()],
            "old_routes": [r for r in old_routes if r not in routes and r["interface"] in kept],
            "interfaces": told,
            "routes": [r for r in routes if r not in old_routes or r["interface"] not in kept],
        }

    def _attach(
        self, new: list[Interface], used: set[int], warnings: list[str]
    ) -> list[dict[str, Any]]:
        """Tie interfaces to slots that are not *used*, as many as there are."""
        free = [slot for slot in range(len(self._taps)) if slot not in used]
        try:
            return attach(list(zip(free, new, strict=False)), self._taps)
        except ClocheError as error:
            warnings.append(str(error))
            return []

    def _done(self, done: Future, is_whole: bool, complain: Callable[[str], object]) -> None:
        """What the guest did of a change; after one that it did half, the next is a whole one."""
        if done.error is None:
            self._needs_resync = self._needs_resync and not is_whole
            return
        self._needs_resync = True
        if self._agent.broken is None:
            complain(f"network: the guest refuses a change: {done.error}")

    def _remember(self, interfaces: list[dict[str, Any]], routes: list[dict[str, Any]]) -> None:
        self._interfaces = {each["name"]: each for each in interfaces}
        self._routes = routes

    def _relay(self, resolv_conf: str) -> list[str]:
        """The name servers on loopback, which are answered for from now on."""
        return self._answer_for(loopback_nameservers(resolv_conf))

    def _answer_for(self, servers: list[str]) -> list[str]:
        """Answer for *servers*; returns those that are to be told of."""
        if self._dns is None:
            self._dns = DnsRelay(self._loop, [], self._answer)
        new = self._dns.add(servers)
        return servers if self._needs_resync else new

    def ask(self, fields: dict[str, Any]) -> None:
        """The guest has a DNS query; the fields of its event."""
        if self._dns is not None:
            query, server = int(fields["query"]), str(fields["server"])
            self._dns.query(query, server, bool(fields["tcp"]), bytes(fields["data"]))

    def _answer(self, query: int, data: bytes) -> None:
        self._agent.call("dns_reply", {"query": query, "data": data})
