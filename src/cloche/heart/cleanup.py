"""Clearing what is left of a container whose supervisor has ended."""

from __future__ import annotations

import os

from cloche.base.errors import ClocheError
from cloche.base.files import read_text, write_atomically
from cloche.base.quick import suppress
from cloche.host import cgroup

CGROUP_FILE = "cgroup"


def note_cgroup(directory: str, path: str) -> None:
    """Keep which cgroup is about to be made: a creation that is killed has no state file yet."""
    write_atomically(os.path.join(directory, CGROUP_FILE), path.encode())


def clear(root: str, container_id: str, cgroups_path: str) -> None:
    """Remove the host's cgroup and the directory of a container; harmless where they are gone.

    Mounts, network and taps went with the supervisor's namespaces. Nothing is removed
    recursively: what lies in the directory are files of ours, and an empty folder.
    """
    directory = os.path.join(root, container_id)
    noted = read_text(os.path.join(directory, CGROUP_FILE))
    for path in {"/" + noted if noted else cgroups_path, cgroups_path}:
        with suppress(ClocheError):  # a path that cannot be one was never made
            cgroup.remove(cgroup.relative_path(path, container_id))
    for name in os.listdir(directory) if os.path.isdir(directory) else []:
        path = os.path.join(directory, name)
        with suppress(OSError):
            if os.path.isdir(path) and not os.path.islink(path):
                os.rmdir(path)
            else:
                os.unlink(path)
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ClocheError(
            f"container {container_id}: cannot remove {directory}: {(error.strerror or '').lower()}"
        ) from None
