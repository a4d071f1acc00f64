"""The processes of a container as its guest tells them, fit to be shown."""

from __future__ import annotations

from cloche.base.text import printable
from cloche.wire.answers import STAT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cloche.heart.container import Container


async def processes(container: Container) -> list[dict[str, Any]]:
    """What runs in *container*, as of `shown`."""
    return shown(await container.sandbox.pulse.ask("processes", {"id": container.id}))


def shown(answer: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The agent's *answer* with a name for each field.

    A process may call itself anything: what is no text to be shown is escaped here, for all that
    show it.
    """
    return [_shown(process) for process in answer]


def _shown(process: dict[str, Any]) -> dict[str, Any]:
    plain = {**process, **dict(zip(STAT, process["stat"], strict=True))}
    plain["command"] = printable(process["command"])
    del plain["stat"]
    return plain
