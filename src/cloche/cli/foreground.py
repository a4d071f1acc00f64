"""Following a process in the guest from a process on the host that stands for it."""

from __future__ import annotations

import contextlib
import os
import signal

from cloche.heart.terminal import make_raw, restore, untranslate_output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloche.cli.log import Log
    from cloche.heart.launch import Request

# Signals that a terminal sends to the whole foreground group: the supervisor gets them itself.
FROM_TERMINAL = {signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH, signal.SIGTSTP}
FORWARDED = {
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
    *FROM_TERMINAL,
}


@contextlib.contextmanager
def untranslated_output() -> Iterator[None]:
    """Our terminal shows what comes as it is, for the guest's own has made it ready to be shown.

    Already during a start, since the program may print before we hear that it runs; input stays
    as it is until then, so that Ctrl-C gives the start up.
    """
    if not os.isatty(0):
        yield
        return
    before = untranslate_output(0)
    try:
        yield
    finally:
        restore(0, before)


@contextlib.contextmanager
def raw_terminal(wanted: bool) -> Iterator[None]:
    """Our terminal in raw mode, as it was before afterwards."""
    if not wanted or not os.isatty(0):
        yield
        return
    before = make_raw(0)
    try:
        yield
    finally:
        restore(0, before)


def follow(request: Request, pid: int, log: Log, *, keep: bool) -> int:
    """Wait for the container's end, forward signals until then; returns its exit code."""
    with raw_terminal(request.glance.terminal):
        code = _wait(pid, request.early_signals)
    if not keep:
        from cloche.cli.lifecycle import remove

        remove(request.root, request.id, force=True, log=log)
    return code


def _wait(pid: int, early: list[int]) -> int:
    watched = FORWARDED | {signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    for number in early:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code
        info = signal.sigwaitinfo(watched)
        number = info.si_signo
        # si_code <= 0: sent by a process, to us alone; above: by the terminal, to our group.
        if number != signal.SIGCHLD and (number not in FROM_TERMINAL or info.si_code <= 0):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
