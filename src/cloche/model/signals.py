"""Signals by name or number, as ``kill`` takes them (the numbering of x86 and ARM).

Imports nothing: `cloche kill` uses it.
"""

from __future__ import annotations

# fmt: off
_NAMES = (
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
)
# fmt: on

SIGNALS = {name: number for number, name in enumerate(_NAMES, 1)}
SIGNALS |= {"IOT": SIGNALS["ABRT"], "CLD": SIGNALS["CHLD"], "POLL": SIGNALS["IO"]}

# What programs see as SIGRTMIN: glibc keeps 32 and 33 for itself.
RTMIN = 34
RTMAX = 64


def parse_signal(text: str) -> int | None:
    """``TERM``, ``SIGTERM``, ``sigterm``, ``15``, ``RTMIN+3`` as a number; None if it is no signal.

    0 is taken, as kill(2) does: it tests whether the process is there.
    """
    if text.isascii() and text.isdigit():
        number = int(text)
        return number if number <= RTMAX else None
    name = text.upper().removeprefix("SIG")
    if name in SIGNALS:
        return SIGNALS[name]
    return _realtime(name)


def _realtime(name: str) -> int | None:
    for base, start, sign in (("RTMIN", RTMIN, "+"), ("RTMAX", RTMAX, "-")):
        if name == base:
            return start
        offset = name.removeprefix(base + sign)
        if offset != name and offset.isascii() and offset.isdigit():
            number = start + int(sign + offset)
            return number if RTMIN <= number <= RTMAX else None
    return None
