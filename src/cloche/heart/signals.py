"""Signals as readable bytes: those sent to a process that stands for one in the guest."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # signal proper makes enumerations, 2 ms
import os

from cloche.base.loop import READ, Loop, read_some

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# What cannot be caught, or is about us and not about the container.
OWN = {_signal.SIGKILL, _signal.SIGSTOP, _signal.SIGCHLD, _signal.SIGPIPE}
FATAL = {_signal.SIGSEGV, _signal.SIGBUS, _signal.SIGFPE, _signal.SIGILL, _signal.SIGABRT}


def watch_signals(loop: Loop, handler: Callable[[int], object]) -> None:
    """Call *handler* with the number of each signal that arrives at this process."""
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    for number in _signal.valid_signals() - OWN - FATAL:
        _signal.signal(number, _noted)
    _signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def arrived(_: int) -> None:
        for number in read_some(read_end) or b"":
            handler(number)

    loop.watch(read_end, READ, arrived)


def watch_parent(loop: Loop, pid: int, gone: Callable[[], object]) -> None:
    """Call *gone* once our parent has ended, which is process *pid*, or was."""
    parent = os.pidfd_open(os.getppid())

    def ended(_: int) -> None:
        loop.unwatch(parent)
        os.close(parent)
        gone()

    if os.getppid() == pid:
        loop.watch(parent, READ, ended)
    else:
        os.close(parent)
        gone()


def _noted(number: int, frame: object) -> None:
    """Python writes the number to the wake-up descriptor before it calls this."""
