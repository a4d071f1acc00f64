"""Limits of a running container changed, and what it uses told."""

from __future__ import annotations

from cloche.base.errors import GuestError, StateError
from cloche.base.quick import suppress
from cloche.heart.blame import explained_update
from cloche.host.usage import vm_usage
from cloche.model.cgroup import check_resources, resource_warnings
from cloche.model.host_cgroup import host_settings
from cloche.model.stats import FILES, container_stats
from cloche.model.update import changes, check_room, exceeds_limit, merged
from cloche.vmm.shape import GUEST_OVERHEAD, MIB
from cloche.wire.messages import AgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cloche.heart.container import Container
    from cloche.heart.sandbox import Sandbox
    from cloche.model.host_cgroup import HostSetting
    from cloche.model.oci_linux import Resources


def memory_room(sandbox: Sandbox) -> int:
    """The most memory that a container's limit may be in this VM, in bytes."""
    return (sandbox.memory_mib - GUEST_OVERHEAD) * MIB


async def update(container: Container, wanted: Resources) -> list[str]:
    """Give *container* the limits *wanted* at once; returns warnings.

    ConfigError, `$` being the resources, for what cannot be had in this VM.
    """
    sandbox, before = container.sandbox, container.resources
    after = merged(before, wanted)
    check_resources(after, "$")
    check_room(before, after, room=memory_room(sandbox), cpus=sandbox.cpus)
    values = changes(before, after)
    bounds = _beyond(before, after)
    if after.memory.check_before_update:
        used = (await _guest_stats(container))["memory"]["usage"]["usage"]
        why = exceeds_limit(after, values, used)
        if why:
            raise StateError(why)
    warnings = container.bound(bounds, "$")
    if values:
        try:
            await sandbox.pulse.ask("cgroup_write", {"id": container.id, "values": values})
        except GuestError as error:
            await _take_back(container, after, before)
            if isinstance(error, AgentError):
                raise explained_update(error, after, "$") from None
            raise
    container.resources = after
    return resource_warnings(wanted, "$") + warnings


async def _take_back(container: Container, after: Resources, before: Resources) -> None:
    """Undo what was written of *after*, for what *before* has a value to go back to."""
    container.bound(_beyond(after, before), "$")
    if values := changes(after, before):
        with suppress(GuestError):
            sandbox = container.sandbox
            written = sandbox.agent.call("cgroup_write", {"id": container.id, "values": values})
            await sandbox.pulse.guard(written)


def _beyond(old: Resources, new: Resources) -> list[HostSetting]:
    """What *new* asks of the host that *old* does not."""
    known = host_settings(old)
    return [setting for setting in host_settings(new) if setting not in known]


async def stats(container: Container) -> dict[str, Any]:
    """The `data` of a stats event: the guest's numbers, and below `vm` the host's."""
    sandbox = container.sandbox
    size = {"memory": sandbox.memory_mib * MIB, "cpus": sandbox.cpus}
    # The VM is in the cgroup of its first container, whosever else it is.
    vm = {"size": size, **vm_usage(sandbox.find(sandbox.request.id).host_cgroup)}
    return {**await _guest_stats(container), "vm": vm}


async def _guest_stats(container: Container) -> dict[str, Any]:
    fields = {"id": container.id, "files": list(FILES)}
    texts = await container.sandbox.pulse.ask("cgroup_read", fields)
    try:
        return container_stats(texts)
    except ValueError as error:
        raise GuestError(f"stats: the guest's cgroup files are odd: {error}") from None
