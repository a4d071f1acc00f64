"""A server of its own for the files of one VM. Imported only where `files = fuse`."""

from __future__ import annotations

import os

from cloche.host.file_server import FileServer
from cloche.vmm.files_slot import FilesSlot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloche.vmm.vm import Vm


def serve_files(vm: Vm, directory: str, share: str) -> Sequence[int]:
    """Serve the folder *share* to *vm*, with a log in *directory*, until the VM's end.

    Returns what the VM is to be launched with; a second launch finds it as the first one did.
    """
    slot = FilesSlot()
    log = os.path.join(directory, "files.log")
    server = FileServer(share, slot.server_end.fileno(), slot.bulk, log)
    slot.server_end.close()

    def end(_: object) -> None:
        server.end()
        slot.close()

    vm.exited.on_done(end)
    return slot.fds
