"""One process in the guest: its streams, its terminal, its end."""

from __future__ import annotations

import os

from cloche.base.loop import Future
from cloche.base.text import printable
from cloche.heart.streams import is_null, is_same
from cloche.heart.terminal import window_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloche.heart.agent import Agent
    from cloche.heart.streams import InputRelay, OutputRelay


# As if killed by SIGKILL: what a process gets whose VM crashes or is killed.
STATUS_VM_DIED = 137
SIGKILL = 9  # signal proper makes enumerations of them all, 2 ms


class GuestProcess:
    """A container's init (*exec_id* None) or an exec'ed process.

    *fds* are stdin, stdout and stderr; with a *terminal* stdin and stdout are its two directions,
    and the third, if there is one, is asked for its size. The descriptors are closed with the
    process. *is_ours*: the terminal is shown on one where each line feed gets its return anyway.
    """

    def __init__(
        self,
        agent: Agent,
        container_id: str,
        exec_id: str | None,
        fds: Sequence[int],
        *,
        terminal: bool,
        is_ours: bool = False,
    ) -> None:
        self.agent = agent
        self.container_id = container_id
        self.exec_id = exec_id
        self.terminal = terminal
        self.pid = 0
        self.exited = Future()
        self._is_ours = terminal and is_ours
        self._tty = os.dup(fds[-1]) if terminal else -1
        self._input: InputRelay | None = None
        self._outputs: list[OutputRelay] = []
        self._connect(fds)

    def _connect(self, fds: Sequence[int]) -> None:
        if is_null(fds[0]) and not self.terminal:
            os.close(fds[0])
        else:
            self._input = self.agent.input(fds[0])
        # What goes to one file goes there through one stream: in the order in which it is written.
        outputs = 1 if self.terminal or is_same(fds[1], fds[2]) else 2
        for fd in fds[1 : 1 + outputs]:
            self._outputs.append(self.agent.output(fd, terminal=self.terminal))
        for fd in fds[1 + outputs :]:
            os.close(fd)

    @property
    def streams(self) -> tuple[int, int, int]:
        """The numbers of stdin, stdout and stderr for the plan; 0 is not connected."""
        numbers = [relay.stream for relay in self._outputs]
        return (
            self._input.stream if self._input else 0,
            numbers[0],
            0 if self.terminal else numbers[-1],
        )

    @property
    def terminal_plan(self) -> dict[str, bool]:
        """What its terminal is like, for the plan; runc has one of its own shown like that too."""
        return {"raw_newlines": True} if self._is_ours else {}

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the terminal; 0, 0 without one."""
        return window_size(self._tty) if self._tty >= 0 else (0, 0)

    def begin_input(self) -> None:
        """Read stdin from now on: the request that names the stream has been sent."""
        if self._input is not None:
            self._input.start()

    def abandon(self) -> None:
        """The process was never started: let go of its descriptors."""
        self._stop_input()
        self._forget_terminal()
        for relay in self._outputs:
            relay.end()

    def on_exit(self, status: int) -> None:
        """The guest has reaped it; told to others once its output is written."""
        self._stop_input()
        self._forget_terminal()
        remaining = len(self._outputs)

        def drained(_: Future) -> None:
            nonlocal remaining
            remaining -= 1
            if remaining == 0:
                self.exited.set(exit_code(status))

        for relay in self._outputs:
            relay.drained().on_done(drained)

    def complain(self, text: str) -> None:
        """Add a line of ours to its last output stream."""
        text = printable(text)
        # A terminal in raw mode takes a line feed for just that.
        is_raw = self.terminal and not self._is_ours
        self._outputs[-1].add(f"\r{text}\r\n" if is_raw else f"{text}\n")

    def give_up(self) -> None:
        """Its VM is gone, and nobody reads the rest of its output: it counts as killed."""
        self.abandon()
        self.exited.set(STATUS_VM_DIED)

    def _forget_terminal(self) -> None:
        if self._tty >= 0:
            os.close(self._tty)
        self._tty = -1

    def _stop_input(self) -> None:
        if self._input is not None:
            self._input.stop()

    def signal(self, number: int, *, everything: bool = False) -> Future:
        """Send it signal *number*; *everything*: all processes of the container."""
        return self.agent.call(
            "signal",
            {
                "id": self.container_id,
                "exec_id": self.exec_id,
                "signal": number,
                "all": everything,
            },
        )

    def resize(self, rows: int, columns: int) -> Future:
        """Tell its terminal its new size."""
        fields = {"id": self.container_id, "exec_id": self.exec_id}
        return self.agent.call("resize", {**fields, "rows": rows, "columns": columns})


def exit_code(status: int) -> int:
    """A wait status as shells and engines count: 128 + n for a death by signal n."""
    if os.WIFSIGNALED(status):
        return 128 + os.WTERMSIG(status)
    return os.WEXITSTATUS(status)
