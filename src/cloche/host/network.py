"""Adopting a network namespace that an engine has prepared: what is in it, and into the guest.

`scan` reads interfaces, addresses, routes and neighbours; `connect` ties each interface to a tap
and gives the agent's `network` request (docs/protocol.md), after which the guest is the owner of
the addresses. Both run in a process that is in the namespace. See docs/network.md.
"""

from __future__ import annotations

import _socket as socket  # socket proper imports selectors and enum, 5 ms
import fcntl
import os
import struct

from cloche.base import fastjson
from cloche.base.errors import ClocheError
from cloche.base.spawn import run
from cloche.host import user_network
from cloche.host.ipv6 import interface_sysctls, namespace_sysctls
from cloche.host.redirect import HOST_PORTS, redirect
from cloche.host.taps import TAP_PREFIX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from cloche.host.taps import Tap

# <linux/sockios.h>, <linux/if.h>
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCSIFMTU = 0x8922
_IFF_UP = 0x1
_IFF_ALLMULTI = 0x200
_IFREQ_FLAGS = "16sH22x"
_IFREQ_INT = "16si20x"

# rtnetlink(7): scope of a route
_SCOPES = {"global": 0, "site": 200, "link": 253, "host": 254, "nowhere": 255}

_QUERIES = b"address show\nroute show table all\nneighbour show nud permanent\n"


class Interface:
    """One Ethernet device of the namespace, as the guest is to have it.

    *kind* is rtnetlink's (veth, macvlan, …; empty for a physical one), *mtu* in bytes, *addresses*
    are `[ip, prefix, broadcast or None]`, *neighbours* `[ip, mac]`, *sysctls* what is not as
    in the namespace as a whole.
    """

    __slots__ = ("addresses", "kind", "mac", "mtu", "name", "neighbours", "sysctls", "up")

    def __init__(self, name: str, kind: str, mac: bytes, mtu: int, up: bool) -> None:
        self.name = name
        self.kind = kind
        self.mac = mac
        self.mtu = mtu
        self.up = up
        self.addresses: list[list[str | int | None]] = []
        self.neighbours: list[list[str | bytes]] = []
        self.sysctls: list[list[str]] = []


class Network:
    """What a namespace holds: *interfaces* in the order of their indexes, *routes* of the main
    table as the protocol's Route, and *warnings*, one line for each thing a guest will not have.
    """

    __slots__ = ("interfaces", "routes", "warnings")

    def __init__(self) -> None:
        self.interfaces: list[Interface] = []
        self.routes: list[dict[str, Any]] = []
        self.warnings: list[str] = []


def scan(*, strict: bool = True) -> Network:
    """Read the current network namespace (one run of ip, about 3 ms).

    Left out are the loopback, cloche's taps, ports of a bridge or bond, and devices that are
    down without an address. ClocheError when a device cannot be carried into a guest; if not
    *strict*, a warning.
    """
    output = run(["ip", "-details", "-json", "-batch", "-"], stdin=_QUERIES, hint="needs iproute2")
    network = parse(*_documents(output.decode()), strict=strict)
    own = interface_sysctls([interface.name for interface in network.interfaces])
    for interface in network.interfaces:
        interface.sysctls = own.get(interface.name, [])
    return network


def _documents(text: str) -> list[Any]:
    """The JSON arrays that `ip -batch` prints one after the other."""
    found: list[Any] = []
    position = 0
    while (position := text.find("[", position)) >= 0:
        document, position = fastjson.first(text, position)
        found.append(document)
    return found


def parse(
    links: Any,  # noqa: ANN401 (decoded JSON)
    routes: Any,  # noqa: ANN401
    neighbours: Any,  # noqa: ANN401
    *,
    strict: bool = True,
) -> Network:
    """The network that the three answers of `ip -details -json` describe; ClocheError as `scan`."""
    network = Network()
    for link in sorted(links, key=lambda link: int(link["ifindex"])):
        if not _is_wanted(link):
            continue
        try:
            network.interfaces.append(_interface(link))
        except ClocheError as error:
            if strict:
                raise
            network.warnings.append(error.message)
    by_name = {interface.name: interface for interface in network.interfaces}
    for entry in neighbours:
        if entry.get("dev") in by_name and "lladdr" in entry:
            by_name[entry["dev"]].neighbours.append([entry["dst"], _mac(entry["lladdr"])])
    for entry in routes:
        if entry.get("table", "main") not in ("local", "default"):
            _add_route(network, entry, by_name)
    # a gateway is accepted only once there is a route to itself
    network.routes.sort(key=lambda route: route["gateway"] is not None)
    return network


def _is_wanted(link: dict[str, Any]) -> bool:
    if link["link_type"] == "loopback" or "master" in link:
        return False
    if _kind(link) == "tun" and link["ifname"].startswith(TAP_PREFIX):
        return False
    return "UP" in link["flags"] or bool(link["addr_info"])


def _kind(link: dict[str, Any]) -> str:
    return str(link.get("linkinfo", {}).get("info_kind", ""))


def _interface(link: dict[str, Any]) -> Interface:
    name, kind = link["ifname"], _kind(link)
    mode = link.get("linkinfo", {}).get("info_data", {}).get("mode", "")
    if link["link_type"] != "ether" or (kind == "ipvlan" and mode != "l2"):
        raise ClocheError(
            f"network: interface {name} ({kind or link['link_type']} {mode}) cannot be given to "
            "a VM: it does not speak Ethernet with ARP",
            hint="for ipvlan use mode l2",
        )
    interface = Interface(name, kind, _mac(link["address"]), link["mtu"], "UP" in link["flags"])
    for address in link["addr_info"]:
        if not _is_automatic(address, interface.mac):
            # of a point-to-point address the prefix belongs to the peer; its route is listed
            prefix = address["prefixlen"]
            if "address" in address:
                prefix = 32 if address["family"] == "inet" else 128
            interface.addresses.append([address["local"], prefix, address.get("broadcast")])
    return interface


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _is_automatic(address: dict[str, Any], mac: bytes) -> bool:
    """Whether the guest's kernel will make this address by itself (fe80::, EUI-64)."""
    if address["family"] != "inet6" or address["scope"] != "link":
        return False
    identifier = bytes([mac[0] ^ 2, *mac[1:3], 0xFF, 0xFE, *mac[3:]])
    return socket.inet_pton(socket.AF_INET6, address["local"])[8:] == identifier


def _add_route(network: Network, entry: dict[str, Any], devices: dict[str, Interface]) -> None:
    """Add *entry* to the routes, or a warning if the protocol cannot express it."""
    destination = str(entry["dst"])
    if entry.get("protocol") == "kernel" and destination.startswith(("fe80:", "ff00:")):
        return
    problem = _problem(entry)
    if "nexthops" in entry:
        network.warnings.append(f"network: route {destination}: only its first next hop is used")
        entry = {**entry, **entry["nexthops"][0]}
    if problem:
        network.warnings.append(f"network: route {destination} is left out: {problem}")
    elif entry.get("dev") in devices:
        network.routes.append(_route(entry))


def _problem(entry: dict[str, Any]) -> str:
    """Why the guest cannot have this route; empty when it can."""
    if entry.get("table", "main") != "main":
        return f"it is in table {entry['table']}, and only the main table is carried over"
    if entry.get("type", "unicast") != "unicast":
        return f"its type is {entry['type']}"
    if "via" in entry:
        return "its gateway is of another address family"
    return ""


def _route(entry: dict[str, Any]) -> dict[str, Any]:
    gateway = entry.get("gateway")
    # of a default route without a gateway, only RFC 4191's preference tells the address family
    six = ":" in f"{entry['dst']}{gateway}" or "pref" in entry
    address, _, prefix = str(entry["dst"]).partition("/")
    destination: str | None = address
    length = int(prefix) if prefix else (128 if six else 32)
    if address == "default":
        destination, length = "::" if six else None, 0
    scope = entry.get("scope", "global")
    return {
        "destination": destination,
        "prefix": length,
        "gateway": gateway,
        "interface": entry["dev"],
        "source": entry.get("prefsrc"),
        "metric": entry.get("metric", 0),
        "scope": _SCOPES[scope] if scope in _SCOPES else int(scope),
        "onlink": "onlink" in entry.get("flags", ()),
    }


def connect(network: Network, taps: Sequence[Tap]) -> dict[str, Any]:
    """Tie interface n of *network* to tap n; from then on the guest receives what comes in.

    Returns the agent's `network` request, with an empty `dns_relay`. ClocheError when there are
    more interfaces than taps, in the host's own namespace, or when the kernel refuses.
    """
    if len(network.interfaces) > len(taps):
        raise no_room(network.interfaces, len(taps))
    slots = range(len(network.interfaces))
    return {
        "interfaces": attach(list(zip(slots, network.interfaces, strict=True)), taps),
        "routes": network.routes,
        "dns_relay": [],
        **own_sysctls(),
    }


def own_sysctls() -> dict[str, Any]:
    """The `sysctls` of a request that makes the guest's namespace as this one, if it takes any."""
    sysctls = namespace_sysctls()
    return {"sysctls": sysctls} if sysctls else {}


def loopback_only() -> dict[str, Any] | None:
    """The agent's `network` request where there is a loopback only; None if it is a plain one."""
    own = own_sysctls()
    return {"interfaces": [], "routes": [], "dns_relay": [], **own} if own else None


def attach(pairs: Sequence[tuple[int, Interface]], taps: Sequence[Tap]) -> list[dict[str, Any]]:
    """Tie interfaces to the taps of these slots; returns them as the agent is told of them.

    ClocheError in the host's own namespace, or when the kernel refuses.
    """
    if pairs:
        _check_not_host()
        ties = [(interface, taps[slot]) for slot, interface in pairs]
        _prepare(ties)
        # one run of tc for all of them: 3 ms
        redirect([(interface.name, tap.name) for interface, tap in ties])
    return [as_told(slot, interface) for slot, interface in pairs]


def no_room(interfaces: Sequence[Interface], taps: int) -> ClocheError:
    """There are more interfaces than *taps*."""
    names = ", ".join(interface.name for interface in interfaces)
    return ClocheError(
        f"network: no device of the VM is left for interface {interfaces[taps].name}: the "
        f"namespace has {len(interfaces)} interfaces ({names}), the VM {taps}",
        hint=f"attach at most {taps} networks",
    )


def _check_not_host() -> None:
    """Redirecting the machine's own interfaces would cut it off: never do that by mistake."""
    try:
        same = os.path.samefile("/proc/self/ns/net", "/proc/1/ns/net")
    except OSError:
        return
    if same:
        raise ClocheError(
            "network: this is the host's own network namespace, whose interfaces are not touched",
            hint="use user-mode networking or a namespace of the container's own",
        )


def _prepare(ties: Sequence[tuple[Interface, Tap]]) -> None:
    """Sysctls of the namespace, MTU and state of the taps; by ioctl, which needs no process."""
    _sysctl("ipv4/ip_local_port_range", f"{HOST_PORTS[0]} {HOST_PORTS[1]}")
    # DNS answers reach both stacks, and the one that did not ask would complain to the server
    _sysctl("ipv4/icmp_ratelimit", "2147483647")
    _sysctl("ipv6/icmp/ratelimit", "2147483647")
    control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC).detach()
    try:
        for interface, tap in ties:
            # else the kernel sends its own router solicitations to the guest
            _sysctl(f"ipv6/conf/{tap.name}/disable_ipv6", "1")
            _set_up(control, interface, tap)
    finally:
        os.close(control)


def _set_up(control: int, interface: Interface, tap: Tap) -> None:
    try:
        request = struct.pack(_IFREQ_INT, tap.name.encode(), interface.mtu)
        fcntl.ioctl(control, _SIOCSIFMTU, request)
        _set_flags(control, tap.name, _IFF_UP)
        if interface.kind == "macvlan":
            # it delivers groups that its own stack has joined, and the guest joins others
            _set_flags(control, interface.name, _IFF_ALLMULTI)
    except OSError as error:
        raise ClocheError(
            f"network: cannot set up {tap.name} for interface {interface.name} "
            f"(MTU {interface.mtu}): {error.strerror}"
        ) from error


def _set_flags(control: int, name: str, flags: int) -> None:
    request = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack(_IFREQ_FLAGS, name.encode(), 0))
    _, old = struct.unpack(_IFREQ_FLAGS, request)
    request = struct.pack(_IFREQ_FLAGS, name.encode(), old | flags)
    fcntl.ioctl(control, _SIOCSIFFLAGS, request)


def _sysctl(name: str, value: str) -> None:
    """Write below /proc/sys/net, which shows the writer's namespace; absent (no IPv6) is fine."""
    path = f"/proc/sys/net/{name}"
    try:
        with open(path, "w") as file:
            file.write(value)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ClocheError(
            f"network: cannot write {path}: {error.strerror}",
            hint="/proc/sys must be writable for cloche",
        ) from error


def as_told(slot: int, interface: Interface) -> dict[str, Any]:
    """The protocol's Interface."""
    own = {"sysctls": interface.sysctls} if interface.sysctls else {}
    return {
        "slot": slot,
        "name": interface.name,
        "mac": interface.mac,
        "mtu": interface.mtu,
        "addresses": interface.addresses,
        "up": interface.up,
        "neighbours": interface.neighbours,
        **own,
    }


def user_mode_network() -> dict[str, Any]:
    """The agent's `network` request for QEMU's user-mode network, as device 0.

    The name server there is user_network.NAMESERVER.
    """
    interface = {
        "slot": 0,
        "name": "eth0",
        "mac": None,
        "mtu": 1500,
        "addresses": [[user_network.GUEST, 24, "10.0.2.255"]],
        "up": True,
        "neighbours": [],
    }
    link = {"dst": "10.0.2.0/24", "dev": "eth0", "scope": "link", "prefsrc": user_network.GUEST}
    default = {"dst": "default", "dev": "eth0", "gateway": user_network.GATEWAY}
    routes = [_route(link), _route(default)]
    return {"interfaces": [interface], "routes": routes, "dns_relay": [], **own_sysctls()}
