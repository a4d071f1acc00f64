"""The container's mounts, shown to those who enter the mount namespace of its supervisor."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cloche.host.proc_view import ProcView, guest_boot
from cloche.model.mounts import MS_RDONLY, parse_options
from cloche.model.plan import host_binds

if TYPE_CHECKING:
    from cloche.base.loop import Future
    from cloche.heart.container import Container
    from cloche.host.view import View


def furnish(view: View, container: Container) -> None:
    """Show the mounts of a created *container* (its mount points exist) below its root."""
    binds = {bind.index: bind for bind in host_binds(container.config, container.request.bundle)}
    for index, mount in enumerate(container.config.mounts):
        if index in binds:
            read_only = bool(parse_options(mount.options).flags & MS_RDONLY)
            view.bind(binds[index].source, mount.destination, read_only=read_only)
        elif mount.type == "proc" and os.path.normpath(mount.destination) == "/proc":
            _show_processes(view, container, mount.destination)
        else:
            view.hide(mount.destination)


def _show_processes(view: View, container: Container, destination: str) -> None:
    sandbox = container.sandbox
    folder = view.open(destination)
    if folder < 0:
        return

    def ask() -> Future:
        return sandbox.agent.call("processes", {"id": container.id})

    try:
        ProcView(sandbox.loop, folder, ask, guest_boot(*sandbox.greeted()))
    except OSError:  # no fanotify here: nothing is shown, rather than what is not the guest's
        view.hide(destination)
    finally:
        os.close(folder)
