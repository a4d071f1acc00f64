"""The library preloaded into QEMU so that its 9p server can make FIFOs and sockets.

What it mends is described in preload/src/lib.rs. It does nothing to a QEMU that needs no mending,
so no version is compared.
"""

from __future__ import annotations

import os
import sys

NAME = "libcloche_preload.so"


def preload_candidates() -> list[str]:
    """The installed library, then the checkout's."""
    checkout = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3))
    return [
        os.path.join(sys.prefix, "libexec", "cloche", NAME),
        os.path.join(checkout, "preload", "target", "release", NAME),
    ]


def preloaded() -> list[str]:
    """The library, where there is one."""
    return [path for path in preload_candidates() if os.path.exists(path)][:1]


def qemu_environment() -> dict[str, str]:
    """QEMU's whole environment."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    if library := preloaded():
        environment["LD_PRELOAD"] = library[0]
    return environment
