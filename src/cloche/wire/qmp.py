"""QMP, QEMU's control protocol: JSON lines, bytes in and messages out, no I/O.

qemu.qmp would do, but needs asyncio and 5 ms more on the start path, where three commands are
written before QEMU even runs and one event is awaited.
"""

from __future__ import annotations

from cloche.base import fastjson
from cloche.base.errors import ClocheError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CAPABILITIES = b'{"execute":"qmp_capabilities"}\n'


def command(name: str, arguments: dict[str, Any] | None = None) -> bytes:
    """One command, ready to be written."""
    message: dict[str, Any] = {"execute": name}
    if arguments:
        message["arguments"] = arguments
    return fastjson.dumps(message).encode() + b"\n"


def restore_commands(incoming: str) -> bytes:
    """All commands of a restore from the migration URI *incoming*, to be written beforehand."""
    capability = {"capability": "x-ignore-shared", "state": True}
    return (
        CAPABILITIES
        + command("migrate-set-capabilities", {"capabilities": [capability]})
        + command("migrate-incoming", {"uri": incoming})
    )


# QEMU's longest answers have some KiB. It is not trusted: a line without an end is no line.
MAX_LINE = 1 << 20


class QmpError(ClocheError):
    """QEMU said what is not its protocol."""


class Decoder:
    """Cuts QMP's byte stream into messages."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages completed by *data*: greeting, returns, errors and events.

        QmpError for anything else.
        """
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > MAX_LINE:
            raise QmpError(f"QEMU: its monitor sent a line of more than {MAX_LINE} bytes")
        return [_message(line) for line in lines if line.strip()]


def _message(line: bytes) -> dict[str, Any]:
    try:
        message = fastjson.loads(line)
    except (ValueError, RecursionError):
        message = None
    if isinstance(message, dict) and isinstance(message.get("error", {}), dict):
        return message
    raise QmpError(f"QEMU: its monitor sent what is no message: {line[:80]!r}")
