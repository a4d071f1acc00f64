"""A server of its own for the files of one VM. Imported only where `files = fuse`."""

from __future__ import annotations

import fcntl
import os

from cloche.base.cputime import CpuTime
from cloche.base.loop import READ, Future
from cloche.host.file_server import NAME, FileServer, FileServerError
from cloche.vmm.files_slot import FilesSlot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloche.base.errors import ClocheError
    from cloche.vmm.vm import Vm

SIOCOUTQ = 0x5411  # <linux/sockios.h>
# What the kernel's FUSE says once nobody answers it any more.
ECONNABORTED, ENOTCONN = 103, 107
# Its end comes after that of its socket.
END_S = 1.0


class Files:
    """The server of a VM's files, from its start to the VM's end.

    *fds* is what the VM is to be launched with; a second launch finds it as the first one did.
    *ended* fails if the server ends before the VM does.
    """

    def __init__(self, vm: Vm, directory: str, share: str) -> None:
        self.ended = Future()
        self._slot = slot = FilesSlot()
        self._loop = vm.loop
        self._cpu = CpuTime()
        log = os.path.join(directory, "files.log")
        self.server = FileServer(share, slot.server_end.fileno(), slot.bulk, log)
        slot.server_end.close()
        self.fds: Sequence[int] = slot.fds
        vm.loop.watch(self.server.pidfd, READ, self._on_end)
        vm.exited.on_done(lambda _: self._close())

    def explains(self, error: ClocheError) -> ClocheError:
        """*error*, which the guest reports; with the server's end, where there was one, in front.

        Programs are not found, and processes end, as a consequence of that: its number is no sign.
        """
        is_sign = getattr(error, "errno", 0) in (ECONNABORTED, ENOTCONN)
        if not self.ended.done and self.server.has_ended(END_S if is_sign else 0):
            self._on_end(READ)
        if not isinstance(lost := self.ended.error, FileServerError):
            return error
        return FileServerError(f"{lost.message} ({error.message})", hint=lost.hint)

    def look(self, elapsed: float) -> float | None:
        """How many of the last *elapsed* s say that it hangs; None: it does not.

        It hangs where there is something to do that it does not do.
        """
        kept = self._cpu.look(self.server.pid, elapsed)
        if self.ended.done or self._cpu.used > 0 or not self._is_wanted():
            return None
        return elapsed - kept

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped by a signal, at the last look."""
        return self._cpu.is_stopped

    def cause(self) -> str:
        """What the host sees of one that hangs."""
        name = f"{NAME} (process {self.server.pid})"
        if self._cpu.is_stopped:
            return f"{name} is stopped; kill -CONT lets it go on"
        if not self.server.has_begun():
            return f"{name} has not begun to serve them"
        if self._cpu.waits_for_disk:
            return f"{name} waits for a disk of the host's"
        return f"{name} hangs"

    def _is_wanted(self) -> bool:
        if not self.server.has_begun() or self._cpu.waits_for_disk:
            return True
        unread = fcntl.ioctl(self._slot.vm_end.fileno(), SIOCOUTQ, bytes(4))
        return unread != bytes(4)

    def _on_end(self, _: int) -> None:
        self._loop.unwatch(self.server.pidfd)
        error = self.server.reap()
        if self.ended.done:
            return
        if error is None:
            self.ended.set()
        else:
            self.ended.fail(error)

    def _close(self) -> None:
        """The VM is gone. Letting go of what it watches takes the server 20 ms: nobody waits."""
        if not self.ended.done:
            self.server.kill()
            self.ended.set()
        self._slot.close()

    def wait(self) -> None:
        """The VM is gone, and so is its loop soon: nobody else would take note of the end."""
        if self.server.pid and self.server.has_ended(END_S):
            self._on_end(READ)


def serve_files(vm: Vm, directory: str, share: str) -> Sequence[int]:
    """Serve the folder *share* to a *vm* that is of no use without; what it is launched with."""
    files = Files(vm, directory, share)

    def ended(_: Future) -> None:
        if isinstance(error := files.ended.error, FileServerError):
            vm.kill(error)

    files.ended.on_done(ended)
    vm.exited.on_done(lambda _: files.wait())
    return files.fds
