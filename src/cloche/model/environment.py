"""Environments with a name in them twice: the last value counts, as with runc.

Imported by the process that runs hooks: nothing but this.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def process_environment(entries: Iterable[str]) -> list[str]:
    """Each name once, where it came first, with the value that came last (Go's os.Setenv)."""
    values = dict(entry.partition("=")[::2] for entry in entries)
    return [f"{name}={value}" for name, value in values.items()]


def hook_environment(entries: Iterable[str]) -> list[str]:
    """Each name once, where it came last, with that value (Go's os/exec).

    What is no variable at all stays as it is.
    """
    kept: dict[str, str] = {}
    for index, entry in enumerate(entries):
        name, equals, _ = entry.partition("=")
        key = name if equals else f"={index}"  # no name has an = in it
        kept.pop(key, None)
        kept[key] = entry
    return list(kept.values())
