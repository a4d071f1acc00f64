"""Modules of the guest's kernel, sent when something in the guest asks for them.

Imported once the first one is asked for: most containers never need any.
"""

from __future__ import annotations

from pathlib import Path

from cloche.base.errors import ClocheError
from cloche.guest.module_store import ModuleStore
from cloche.guest.modules import read_module
from cloche.wire.messages import AgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cloche.base.loop import Loop
    from cloche.heart.agent import Agent

# The guest's kernel asks for 50 modules at once, and for no more.
MOST_QUESTIONS = 64
LONGEST_NAME = 64
# Of one request: others must not wait for long.
PIECE = 256 << 10


class GuestModules:
    """Answers what one guest's kernel asks for, out of the kernel's folder *directory* on the host.

    What cannot be read is told to *complain*, once. A name that nobody knows is no mistake: kernels
    ask for many things that might be there (`modprobe -q`).
    """

    def __init__(
        self, loop: Loop, agent: Agent, directory: str, complain: Callable[[str], object]
    ) -> None:
        self._loop = loop
        self._agent = agent
        self._directory = Path(directory)
        self._complain = complain
        self._store: ModuleStore | None = None
        self._open = 0
        self._has_complained = False

    def ask(self, fields: dict[str, Any]) -> None:
        """The guest's kernel wants a module; the fields of its event, which the guest chose."""
        query, name = int(fields["query"]), str(fields["name"])
        loaded = {str(each) for each in fields["loaded"]}
        if self._open >= MOST_QUESTIONS or not 0 < len(name) <= LONGEST_NAME:
            self._agent.call("module_end", {"query": query, "found": False})
            return
        self._open += 1
        self._loop.start(self._answer(query, name, loaded)).on_done(self._answered)

    def _answered(self, _: object) -> None:
        self._open -= 1

    async def _answer(self, query: int, name: str, loaded: set[str]) -> None:
        try:
            found = await self._send(query, name, loaded)
        except AgentError:
            return  # whoever asked is gone
        except (ClocheError, OSError, ValueError) as error:
            found = False
            if self._agent.broken is None and not self._has_complained:
                self._has_complained = True
                self._complain(f"kernel module {name}: {error}")
        self._agent.call("module_end", {"query": query, "found": found})

    async def _send(self, query: int, name: str, loaded: set[str]) -> bool:
        """Send the files that *name* takes; False where there is nothing of that name."""
        if self._store is None:
            self._store = ModuleStore(self._directory / "modules")
        found = self._store.find(name, loaded)
        for module, path in found or ():
            data = read_module(path)
            fields = {"query": query, "module": module.name}
            for start in range(0, len(data), PIECE):
                piece = data[start : start + PIECE]
                complete = start + PIECE >= len(data)
                await self._agent.call(
                    "module_data", {**fields, "data": piece, "complete": complete}
                )
        return found is not None
