"""The one exception type that users see, and how it is worded.

A message names the step and the object first, then the cause; the hint says what to try.
"""

from __future__ import annotations


class ClocheError(Exception):
    """A failure that is explained to the user in one line.

    *message* is lower case, object first, then cause; *hint* says what to try.
    *exit_code* is what the command line exits with (runc uses 1 for all its own failures).
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class NotFoundError(ClocheError):
    """The container, image or file that was named does not exist."""


class ConfigError(ClocheError):
    """config.json, a flag or cloche's configuration cannot be used; names the field."""


class LimitError(ClocheError):
    """A resource limit of this process (setrlimit(2)) is too low; names it and what is needed."""


class StateError(ClocheError):
    """The container is in a state in which the verb cannot be carried out."""


class DamagedError(ClocheError):
    """A file of cloche's own does not hold what was written to it."""


class GuestError(ClocheError):
    """The guest answered with an error, or with something that is not the protocol."""


class LaunchError(ClocheError):
    """QEMU could not even be executed: nothing that another boot or template would change."""


class BootError(ClocheError):
    """The VM did not come up; the message carries milestone, console tail and QEMU's stderr.

    *blames_machine* where it came to no milestone by itself: another machine type may do better.
    *was_silent* where it was given up: a little later it might have said something.
    """

    blames_machine = False
    was_silent = False
