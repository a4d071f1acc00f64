"""Where a container's standard streams are on the host."""

from __future__ import annotations

import os

from cloche.heart.terminal import open_console, own_console

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.heart.launch import Request
    from cloche.model.oci import Config


def stdio_of(request: Request, config: Config) -> tuple[int, ...]:
    """Descriptors of its stdin, stdout and stderr: a terminal handed to the engine, or ours.

    In place of stderr comes what tells the size of a terminal, if anything does.
    """
    if not config.process.terminal:
        return own_copies()
    if not request.console_socket:
        console = own_console()
        stdin, stdout, stderr = own_copies()
        if console < 0:
            return stdin, stdout, stderr
        os.close(stderr)
        return stdin, stdout, console
    size = config.process.console_size
    rows_columns = (size.height, size.width) if size else (0, 0)
    slave = open_console(request.console_socket, rows_columns)
    for fd in own_copies():
        os.close(fd)
    return slave, os.dup(slave), os.dup(slave)


def own_copies() -> tuple[int, ...]:
    """Our stdio under other numbers; 0 to 2 become /dev/null.

    Engines wait for the end of `create`'s output, and a number that is closed is given anew.
    """
    copies = tuple(os.dup(fd) for fd in range(3))
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)
    return copies
