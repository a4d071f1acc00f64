"""`checkpoint`, `restore`: runc's verbs that cloche knows and cannot do yet."""

from __future__ import annotations

from cloche.base.errors import ClocheError
from cloche.cli.flags import Verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.cli.main import Context

# verb: what to do without it
INSTEAD = {
    "checkpoint": "stop the container, its files stay as they are",
    "restore": "create the container anew from its bundle",
}


def checkpoint(context: Context, args: list[str]) -> int:
    """`cloche checkpoint`."""
    raise _not_yet("checkpoint", args)


def restore(context: Context, args: list[str]) -> int:
    """`cloche restore`."""
    raise _not_yet("restore", args)


def _not_yet(verb: str, args: list[str]) -> ClocheError:
    """The error that every use of *verb* ends with; `--help` prints as much and exits."""
    if "--help" in args or "-h" in args:
        Verb(f"{verb} [flags] ID", f"Not possible yet: {INSTEAD[verb]}.").parse(["--help"])
    # Whatever the flags are: engines pass those of runc.
    return ClocheError(f"{verb}: not possible yet", hint=INSTEAD[verb])
