"""Ties two network devices together with tc, and leaves the host stack what DNS needs.

All frames that enter one device leave through the other. An engine's DNS resolver (Docker's
127.0.0.11) however asks its own questions from inside the container's namespace, with the
container's address. Answers to those must reach the host's network stack there: see
docs/network.md.
"""

from __future__ import annotations

from cloche.base.errors import ClocheError
from cloche.base.spawn import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# The namespace's own sockets get ports whose upper four bits are set, so that one masked
# comparison tells them; a guest's kernel takes 32768–60999 unless told otherwise.
HOST_PORTS = (61440, 65535)
_HOST_PORT_BITS = "0xf000"

_HINT = "tc needs sch_ingress, act_mirred and cls_u32 (or cls_flower and cls_matchall)"


def redirect(pairs: Sequence[tuple[str, str]]) -> None:
    """Tie each (interface, tap) of *pairs* together, in both directions.

    What an earlier VM left on the interfaces is cleared. ClocheError quotes tc's complaint.
    """
    try:
        _tc(_u32, pairs)
    except ClocheError as error:
        for dialect in (_u32, _flower):
            _clear(pairs)
            try:
                _tc(dialect, pairs)
            except ClocheError:
                continue
            return
        raise ClocheError(f"network: cannot redirect: {error.message}", hint=_HINT) from error


def untie(names: Sequence[str]) -> None:
    """Take what was tied to these interfaces off again; those that are gone took it along."""
    _clear([(name,) for name in names])


def _tc(dialect: Callable[[str, str], list[str]], pairs: Sequence[tuple[str, str]]) -> None:
    lines = [line for interface, tap in pairs for line in dialect(interface, tap)]
    run(["tc", "-batch", "-"], stdin="".join(f"{line}\n" for line in lines).encode())


def _clear(pairs: Sequence[tuple[str, ...]]) -> None:
    for device in (device for pair in pairs for device in pair):
        try:
            run(["tc", "qdisc", "del", "dev", device, "ingress"])
        except ClocheError:
            continue  # there was none


def _u32(interface: str, tap: str) -> list[str]:
    """The tc commands for one pair with cls_u32 (offsets count from the network header).

    An IPv4 header with options, and all but the first fragment, go to the guest only.
    """
    ports = f"match u16 53 0xffff at {{0}} match u16 {_HOST_PORT_BITS} {_HOST_PORT_BITS} at {{1}}"
    plain4 = f"u32 match u8 5 0x0f at 0 match u16 0 0x1fff at 6 {ports.format(20, 22)}"
    ports6 = ports.format(40, 42)
    return _commands(
        interface,
        tap,
        arp_reply="u32 match u16 2 0xffff at 6",
        udp4=f"{plain4} match u8 17 0xff at 9",
        tcp4=f"{plain4} match u8 6 0xff at 9",
        neighbour6="u32 match u8 58 0xff at 6 match u8 136 0xff at 40",
        udp6=f"u32 match u8 17 0xff at 6 {ports6}",
        tcp6=f"u32 match u8 6 0xff at 6 {ports6}",
        everything="u32 match u32 0 0",
    )


def _flower(interface: str, tap: str) -> list[str]:
    """The same with cls_flower and cls_matchall, for kernels without cls_u32."""
    ports = f"src_port 53 dst_port {HOST_PORTS[0]}-{HOST_PORTS[1]}"
    return _commands(
        interface,
        tap,
        arp_reply="flower arp_op reply",
        udp4=f"flower ip_proto udp {ports}",
        tcp4=f"flower ip_proto tcp {ports}",
        neighbour6="flower ip_proto icmpv6 type 136",
        udp6=f"flower ip_proto udp {ports}",
        tcp6=f"flower ip_proto tcp {ports}",
        everything="matchall",
    )


def _commands(
    interface: str,
    tap: str,
    *,
    arp_reply: str,
    udp4: str,
    tcp4: str,
    neighbour6: str,
    udp6: str,
    tcp6: str,
    everything: str,
) -> list[str]:
    rule = f"filter add dev {interface} parent ffff: protocol"
    # both: the guest may have asked as well. UDP goes to both because a resolver inside the
    # guest picks its ports from the whole range; a segment of TCP would be reset by the other.
    both = f"action mirred egress mirror dev {tap} pass"
    # a filter with a class but no action ends the search: the frame goes to the host stack
    # only (act_gact, which would say "pass", is not in every kernel)
    host_only = "classid 1:1"
    return [
        f"qdisc add dev {tap} ingress",
        f"filter add dev {tap} parent ffff: protocol all prio 1 {everything} "
        f"action mirred egress redirect dev {interface}",
        f"qdisc add dev {interface} ingress",
        f"{rule} arp prio 1 {arp_reply} {both}",
        f"{rule} ip prio 2 {udp4} {both}",
        f"{rule} ip prio 3 {tcp4} {host_only}",
        f"{rule} ipv6 prio 4 {neighbour6} {both}",
        f"{rule} ipv6 prio 5 {udp6} {both}",
        f"{rule} ipv6 prio 6 {tcp6} {host_only}",
        f"{rule} all prio 9 {everything} action mirred egress redirect dev {tap}",
    ]
