"""Whether a network namespace has IPv6, as a whole and on each interface.

Engines switch it off for networks that have no IPv6 addresses: then not even ::1 is there. The
guest's kernel is told the same, by sysctls of its own namespace. Imported on the start path.
"""

from __future__ import annotations

ON, OFF = "0", "1"  # of disable_ipv6
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

CONF = "/proc/sys/net/ipv6/conf"


def switch(name: str) -> str:
    """ON or OFF for the interface *name* of this process's namespace, or for `all` or `default`.

    A kernel without IPv6, and an interface that is gone, have none.
    """
    try:
        with open(f"{CONF}/{name}/disable_ipv6", "rb", buffering=0) as file:
            return ON if file.read(1) == b"0" else OFF
    except OSError:
        return OFF


def own_loopback() -> dict[str, Any] | None:
    """The `network` request for a loopback only; None where it is as in every guest."""
    if switch("lo") == ON:
        return None
    from cloche.host.network import loopback_only

    return loopback_only()


def namespace_sysctls() -> list[list[str]]:
    """What a namespace as the kernel makes it lacks to be as this one: the `sysctls` of a
    `network` request.
    """
    every = switch("all")
    found = [_sysctl("all", every)] if every == OFF else []
    # What is written to `all` goes to the others as well.
    others = [(name, switch(name)) for name in ("default", "lo")]
    return found + [_sysctl(name, value) for name, value in others if value != every]


def interface_sysctls(names: Iterable[str]) -> dict[str, list[list[str]]]:
    """The `sysctls` of those of the interfaces *names* that are not as their namespace is."""
    usual = {switch("all"), switch("default")}
    found = {name: switch(name) for name in names}
    return {name: [_sysctl(name, value)] for name, value in found.items() if {value} != usual}


def _sysctl(name: str, value: str) -> list[str]:
    return [f"net/ipv6/conf/{name}/disable_ipv6", value]
