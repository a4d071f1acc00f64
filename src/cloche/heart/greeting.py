"""What every guest is sent first: a handshake, the share, what a clone must not share with others.

Imported on the start path before QEMU runs.
"""

from __future__ import annotations

import os
from time import time_ns

from cloche.base.msgpack import pack
from cloche.host.share import GUEST_SHARE
from cloche.vmm.argv import SHARE_TAG
from cloche.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# msize: the largest that QEMU's 128 descriptors of 4 KiB carry. cache=mmap keeps no data and no
# attributes, so host and guest see each other's changes at once (docs/files.md has the cost). From
# Linux 6.4 on it caches what is read and written all the same, but for directio (fs/9p/fid.h), a
# word that older ones pass over.
SHARE_OPTIONS = "trans=virtio,version=9p2000.L,msize=512000,cache=mmap,directio"
# A guest whose files cloche-files serves (`files` of the configuration).
FUSE = "fuse"


class Greeting:
    """The first requests to a guest, numbered from 1, in a form to be sent before QEMU runs.

    That is possible with a frozen QEMU, where the agent listens already. The clock is not told
    yet: nobody knows how long it takes until somebody listens.
    """

    def __init__(self, files: str = "9p") -> None:
        self.nonce = os.urandom(16)
        self.requests = [("hello", hello(self.nonce))]
        if files != FUSE:  # which is mounted since the guest's boot
            self.requests.append(("mount", share_mount()))

    def encode(self) -> bytes:
        """The frames of all of them."""
        return b"".join(
            frames.encode(0, frames.REQUEST, pack([number, {op: fields}]))
            for number, (op, fields) in enumerate(self.requests, 1)
        )


def hello(nonce: bytes) -> dict[str, Any]:
    """The fields of the handshake."""
    return {"version": frames.PROTOCOL_VERSION, "nonce": nonce}


def renewal(hostname: str) -> dict[str, Any]:
    """The fields of `renew`: clock, random state, names."""
    return {
        "realtime_ns": time_ns(),
        "seed": os.urandom(64),
        "hostname": hostname[:63],
        "machine_id": os.urandom(16).hex(),
    }


def share_mount(files: str = "9p") -> dict[str, Any]:
    """The fields of the `mount` of the share; of FUSE: anew, its server knows of nothing."""
    if files == FUSE:
        return agent_mount(SHARE_TAG, GUEST_SHARE, FUSE)
    return agent_mount(SHARE_TAG, GUEST_SHARE, "9p", data=SHARE_OPTIONS)


def agent_mount(
    source: str,
    target: str,
    fstype: str,
    *,
    flags: int = 0,
    data: str = "",
    folders: list[str] | None = None,
) -> dict[str, Any]:
    """The fields of a `mount` in the agent's own mount namespace."""
    fields: dict[str, Any] = {
        "source": source,
        "target": target,
        "type": fstype,
        "flags": flags,
        "data": data,
        "propagation": 0,
        "kind": "dir",
        "tmpcopyup": False,
    }
    if folders:
        fields["folders"] = folders
    return fields
