"""A container's root in an image, on a disk of its VM: what the guest mounts, and leaves behind.

Imported only where there is one.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from cloche.base import syscalls
from cloche.base.errors import ClocheError
from cloche.heart.container import IMAGE_MERGED, IMAGE_ROOT
from cloche.heart.greeting import agent_mount
from cloche.model.problems import refuse
from cloche.vmm.argv import ROOT_SERIAL
from cloche.wire.messages import AgentError

if TYPE_CHECKING:
    from cloche.heart.agent import Agent
    from cloche.heart.container import Container

# What the guest tries to mount an image as; erofs is only ever read.
TYPES = ("ext4", "erofs")
SCRATCH = "/run/scratch"


def layers() -> list[dict[str, Any]]:
    """The mounts of an image's block slot, and of a writable overlay in the guest's memory."""
    # The agent makes the overlay's folders: a mount of kind "dir" creates its target.
    upper, work = f"{SCRATCH}/upper", f"{SCRATCH}/work"
    data = f"lowerdir={IMAGE_ROOT},upperdir={upper},workdir={work}"
    return [
        agent_mount("/dev/disk/cloche0", IMAGE_ROOT, "erofs", flags=1),
        agent_mount("tmpfs", SCRATCH, "tmpfs", data="mode=0755"),
        agent_mount("overlay", IMAGE_MERGED, "overlay", data=data, folders=[upper, work]),
    ]


async def mount(agent: Agent, *, read_only: bool) -> None:
    """Mount the disk with the root; ConfigError when the guest finds no file system on it."""
    flags = syscalls.MS_RDONLY if read_only else 0
    causes = []
    for kind in TYPES:
        fields = agent_mount(f"/dev/disk/{ROOT_SERIAL}", IMAGE_ROOT, kind, flags=flags)
        try:
            await agent.call("mount", fields)
        except AgentError as error:
            causes.append(f"{kind} ({error.message})")
        else:
            return
    refuse(
        "$.vm.image",
        f"the guest cannot mount it, neither as {' nor as '.join(causes)}",
        "if its VM was killed, start it once writable; that replays the journal",
    )


async def close(container: Container) -> None:
    """Leave a clean file system behind: one that is only read cannot be mended later.

    Made read-only, not unmounted: the kernel may take its time to let the last mount go.
    """
    sandbox, flags = container.sandbox, syscalls.MS_REMOUNT | syscalls.MS_RDONLY
    if not sandbox.vm.exited.done:
        with contextlib.suppress(ClocheError):  # everything in it is written back already
            fields = agent_mount("", IMAGE_ROOT, "", flags=flags)
            await sandbox.pulse.ask("mount", fields)
