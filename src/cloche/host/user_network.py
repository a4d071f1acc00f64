"""The addresses of QEMU's user-mode network (its -netdev user has them by default)."""

from __future__ import annotations

GUEST = "10.0.2.15"
# The host's own services are at its address as well.
GATEWAY = "10.0.2.2"
# Queries are handed on to the host's resolver.
NAMESERVER = "10.0.2.3"
