"""The container's mounts, shown to those who enter the mount namespace of its supervisor."""

from __future__ import annotations

import os

from cloche.host.proc_view import ProcView, guest_boot
from cloche.model.mounts import MS_RDONLY, parse_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.base.loop import Future
    from cloche.heart.container import Container
    from cloche.host.view import View
    from cloche.model.oci import Config

    ShowProcesses = Callable[[int], object]


def furnish(view: View, config: Config, folder: str, show_processes: ShowProcesses) -> None:
    """Show the mounts of a created container (its mount points exist) below its root.

    *folder* is where the share has its binds, by index; *show_processes* is given the folder of its
    /proc, which it may use until it returns.
    """
    for index, mount in enumerate(config.mounts):
        if os.path.exists(source := os.path.join(folder, str(index))):
            read_only = bool(parse_options(mount.options).flags & MS_RDONLY)
            view.bind(source, mount.destination, read_only=read_only)
        elif mount.type == "proc" and os.path.normpath(mount.destination) == "/proc":
            _show_processes(view, mount.destination, show_processes)
        else:
            view.hide(mount.destination)


def _show_processes(view: View, destination: str, show_processes: ShowProcesses) -> None:
    folder = view.open(destination)
    if folder < 0:
        return
    try:
        show_processes(folder)
    except OSError:  # no fanotify here: nothing is shown, rather than what is not the guest's
        view.hide(destination)
    finally:
        os.close(folder)


def show_guest(container: Container) -> ShowProcesses:
    """For furnish: the processes of *container*, as its sandbox learns of them."""
    sandbox = container.sandbox

    def ask() -> Future:
        from cloche.heart.listing import processes

        return sandbox.loop.start(processes(container))

    return lambda folder: ProcView(sandbox.loop, folder, ask, guest_boot(*sandbox.greeted()))
