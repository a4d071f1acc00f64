"""Pseudo-terminals on the host: the engine holds the master, we relay the slave, raw.

The guest's own pty does echo, line editing and Ctrl-C; ours only carries bytes, the window size
and the hang-up. Imported by `run` and `exec` too: termios only where there is a terminal.
"""

from __future__ import annotations

import fcntl
import os

from cloche.base.errors import ClocheError
from cloche.base.files import short_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# <asm-generic/ioctls.h>
_TIOCSCTTY, _TIOCGWINSZ, _TIOCSWINSZ = 0x540E, 0x5413, 0x5414


def make_raw(fd: int, *, output: bool) -> list[Any]:
    """Put the terminal *fd* into raw mode (cfmakeraw(3)); returns its settings before.

    Without *output* that is for what is typed only: what is printed is shown as ever.
    """
    import termios

    before = termios.tcgetattr(fd)
    iflag, oflag, cflag, lflag, ispeed, ospeed, cc = termios.tcgetattr(fd)
    iflag &= ~(
        termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
        | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
    )  # fmt: skip
    if output:
        oflag &= ~termios.OPOST
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    termios.tcsetattr(fd, termios.TCSANOW, [iflag, oflag, cflag, lflag, ispeed, ospeed, cc])
    return before


def restore(fd: int, settings: list[Any]) -> None:
    """Undo make_raw."""
    import termios

    termios.tcsetattr(fd, termios.TCSADRAIN, settings)


def own_console() -> int:
    """A descriptor of the terminal that we run on, closed by an exec; -1: there is none.

    Any of our standard streams may be redirected, so each is tried, as runc does it.
    """
    for number in (2, 1, 0):
        if os.isatty(number):
            return os.dup(number)
    try:
        return os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return -1


def window_size(fd: int) -> tuple[int, int]:
    """Rows and columns of the terminal *fd*; 0, 0 when it is none."""
    try:
        answer = fcntl.ioctl(fd, _TIOCGWINSZ, bytes(8))  # struct winsize: four shorts
    except OSError:
        return 0, 0
    return int.from_bytes(answer[:2], "little"), int.from_bytes(answer[2:4], "little")


def set_window_size(fd: int, rows: int, columns: int) -> None:
    """Give the terminal *fd* a size."""
    size = rows.to_bytes(2, "little") + columns.to_bytes(2, "little")
    fcntl.ioctl(fd, _TIOCSWINSZ, size + bytes(4))


def open_console(console_socket: str, size: tuple[int, int]) -> int:
    """Make a pty, send its master to the engine's *console_socket*, return the raw slave.

    The slave becomes the controlling terminal of this session, so that the engine's changes of
    the window size arrive here as SIGWINCH.
    """
    import _socket

    master, slave = os.openpty()
    make_raw(slave, output=True)
    if size[0] and size[1]:
        set_window_size(slave, *size)
    name = os.ttyname(slave).encode()
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        with short_path(console_socket) as path:
            channel.connect(path)
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, master.to_bytes(4, "little"))
        channel.sendmsg([name], [rights])
    except OSError as error:
        os.close(slave)
        raise ClocheError(
            f"console socket {console_socket}: {(error.strerror or '').lower()}",
            hint="the engine must listen on it before it calls create or exec",
        ) from None
    finally:
        channel.close()
        os.close(master)
    fcntl.ioctl(slave, _TIOCSCTTY, 0)
    return slave
