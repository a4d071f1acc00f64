"""A container's state on disk: `<root>/<id>/state.json`, written atomically by its supervisor.

Imported by every verb: json, os and nothing more.
"""

from __future__ import annotations

import os

from cloche.base import fastjson
from cloche.base.errors import ClocheError, ConfigError, DamagedError, NotFoundError
from cloche.base.files import read_text, write_atomically

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

OCI_VERSION = "1.3.0"
DEFAULT_ROOT = "/run/cloche"

CREATING = "creating"
CREATED = "created"
RUNNING = "running"
PAUSED = "paused"
STOPPED = "stopped"

# As runc: letters, digits and _+-. only, so that an id is always one file name.
_ID_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+.-")


def check_id(container_id: str) -> str:
    """The id itself; ConfigError when it cannot name a container."""
    fits = 0 < len(container_id) <= 1024 and _ID_CHARACTERS.issuperset(container_id)
    if not fits or container_id in (".", ".."):
        raise ConfigError(
            f"container id {container_id!r}: invalid id format",
            hint="use letters, digits and the characters _ + - .",
        )
    return container_id


def process_start_time(pid: int) -> int:
    """Clock ticks from boot to the start of *pid* (proc(5), stat field 22); 0 when it is gone.

    A zombie counts as gone.
    """
    text = read_text(f"/proc/{pid}/stat") if pid > 0 else None
    if not text:
        return 0
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" else int(fields[19])


class State:
    """What is known of a container; `status` as it is on disk, `current_status` as it is now."""

    def __init__(self, root: str, container_id: str, fields: dict[str, Any]) -> None:
        self.root = root
        self.id = container_id
        self.fields = fields

    @property
    def directory(self) -> str:
        """The container's directory below the root."""
        return os.path.join(self.root, self.id)

    @property
    def pid(self) -> int:
        """The process that stands for the container; 0 once it has ended."""
        return int(self.fields.get("pid", 0)) if self.is_alive() else 0

    def is_alive(self) -> bool:
        """Whether that process lives (and is the same one, not a later user of its pid)."""
        started = process_start_time(int(self.fields.get("pid", 0)))
        return started != 0 and started == self.fields.get("pid_start")

    def current_status(self) -> str:
        """The status now: what a dead process left behind is `stopped`."""
        return str(self.fields["status"]) if self.is_alive() else STOPPED

    def save(self) -> None:
        """Write the file; ClocheError where that cannot be (a full disk)."""
        path = os.path.join(self.directory, "state.json")
        try:
            write_atomically(path, fastjson.dumps(self.fields).encode())
        except OSError as error:
            cause = (error.strerror or str(error)).lower()
            raise ClocheError(f"{path}: cannot write it: {cause}") from None

    def oci(self) -> dict[str, Any]:
        """The state as the OCI runtime specification wants it (runtime.md, state)."""
        return {
            "ociVersion": OCI_VERSION,
            "id": self.id,
            "status": self.current_status(),
            "pid": self.pid,
            "bundle": self.fields["bundle"],
            "annotations": self.fields.get("annotations") or {},
        }

    def runc(self) -> dict[str, Any]:
        """The state as `runc state` prints it: no annotations when there are none."""
        annotations = self.fields.get("annotations")
        return {
            "ociVersion": OCI_VERSION,
            "id": self.id,
            "pid": self.pid,
            "status": self.current_status(),
            "bundle": self.fields["bundle"],
            "rootfs": self.fields["rootfs"],
            "created": self.fields["created"],
            **({"annotations": annotations} if annotations else {}),
            "owner": "",
        }


_REQUIRED = ("pid", "pid_start", "status", "bundle", "rootfs", "created")


def load_state(root: str, container_id: str) -> State:
    """The state of a container; NotFoundError when there is none, DamagedError when it is odd."""
    check_id(container_id)
    path = os.path.join(root, container_id, "state.json")
    text = read_text(path)
    if text is None:
        # containerd and Docker look for these words.
        raise NotFoundError(f"container {container_id}: container does not exist")
    try:
        fields = fastjson.loads(text)
        missing = [key for key in _REQUIRED if key not in fields]
        if not isinstance(fields, dict) or missing:
            raise ValueError(f"no {missing[0]}" if missing else "not an object")
    except (ValueError, TypeError) as error:
        raise DamagedError(
            f"{path}: damaged state file: {error}", hint="cloche delete --force removes it"
        ) from None
    return State(root, container_id, fields)


def list_states(root: str, report: Callable[[ClocheError], object]) -> list[State]:
    """All containers below *root*, by id; those that cannot be told are reported."""
    states = []
    for name in sorted(os.listdir(root)) if os.path.lexists(root) else []:
        if os.path.exists(os.path.join(root, name, "state.json")):
            try:
                states.append(load_state(root, name))
            except NotFoundError:
                pass  # it was deleted meanwhile
            except ClocheError as error:
                report(error)
    return states
