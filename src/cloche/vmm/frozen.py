"""Frozen QEMUs: the process of a restored VM that has run containers before, kept in a file.

Without KVM a start spends most of its time on what QEMU does the first time: it translates the
guest's code. A frozen QEMU has done so. How it works is in docs/frozen.md; making one is in
freezer.py and heart/frozen_maker.py; here is only what every start needs.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import zlib
from time import time

from cloche.base import fastjson
from cloche.base.descriptors import open_all
from cloche.base.files import read_text
from cloche.base.quick import suppress
from cloche.vmm.argv import NIC_SLOTS
from cloche.vmm.integrity import MANIFEST, Image
from cloche.vmm.launch import file_limit
from cloche.vmm.shape import MIB, host_cpu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from cloche.vmm.shape import Shape

NAME = "cloche-thaw"
FOLDER, MEMORY, PROCESS = "frozen", "memory", "process"
# The accelerator whose starts a frozen QEMU makes quicker.
FROZEN_ACCEL = "tcg"
# How long nobody tries again where none could be made, in seconds.
RETRY_S = 3600
# The same where it failed for what passes: a full disk, say.
RETRY_SOON_S = 300
# Raised when what is in an image, or what a thaw hands over, changes.
FORMAT = "4"

# <linux/if_tun.h>
_TUNSETOFFLOAD, _TUNSETSNDBUF, _TUNSETVNETHDRSZ = 0x400454D0, 0x400454D4, 0x400454D8
_INT_MAX = (1 << 31) - 1


class Frozen:
    """A frozen *qemu*, in *folder*.

    *taps* is what its taps were set to, as `taps_of` tells; empty: it has a user-mode network
    instead. It takes a limit of *files* open files, which its maker had.
    """

    def __init__(
        self, program: str, qemu: str, folder: str, taps: Sequence[int], files: int
    ) -> None:
        self.program = program
        self.qemu = qemu
        self.folder = folder
        self.taps = taps
        self.files = files
        self.image = frozen_image(folder)

    def open(self) -> list[int]:
        """Descriptors of memory and process, of one making; OSError where they are gone."""
        folder = os.open(self.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return open_all((MEMORY, PROCESS), folder)
        finally:
            os.close(folder)

    def descriptors(
        self, share: str, taps: Sequence[int], image: str, files: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """What cloche-thaw finds behind the channels, the process last; those to be closed here."""
        ours: list[int] = []
        try:
            if not files:
                ours.append(os.open(share, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            # Past the image's end QEMU reads zeros.
            ours.append(os.open(image or os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            memory, process = self.open()
            ours += [memory, process]
            slots, idle = self.network(taps)
        except OSError:
            for fd in ours:
                os.close(fd)
            raise
        return [*files, *ours[:-1], *slots, process], [*ours, *idle]

    def give_up(self) -> None:
        """It does not thaw: the next start makes another one."""
        with suppress(OSError):
            os.unlink(os.path.join(self.folder, MANIFEST))

    def network(self, taps: Sequence[int]) -> tuple[list[int], list[int]]:
        """The descriptors of all network slots, and those of them that the caller has to close.

        The *taps* come first, as QEMU itself sets them up (net/tap.c); what is sent to the other
        slots goes nowhere: an epoll instance cannot be written, and never has anything to read.
        """
        if not self.taps:
            return [], []
        header, offloads = self.taps
        for tap in taps:
            fcntl.ioctl(tap, _TUNSETSNDBUF, struct.pack("i", _INT_MAX))
            fcntl.ioctl(tap, _TUNSETVNETHDRSZ, struct.pack("i", header))
            # What the guest takes as it is: packets without a checksum, larger than the MTU.
            fcntl.ioctl(tap, _TUNSETOFFLOAD, offloads)
        with select.epoll() as nothing:
            idle = [os.dup(nothing.fileno()) for _ in range(NIC_SLOTS - len(taps))]
        return [*taps, *idle], idle


def frozen_image(folder: str) -> Image:
    """What is verified of the frozen QEMU there."""
    return Image(folder, (MEMORY, PROCESS))


def thaw_candidates() -> list[str]:
    """The installed program, then the checkout's."""
    checkout = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3))
    return [
        os.path.join(sys.prefix, "libexec", "cloche", NAME),
        os.path.join(checkout, "thaw", "target", "release", NAME),
    ]


def find_thaw() -> str | None:
    """The program cloche-thaw, or None when it is nowhere."""
    return next((path for path in thaw_candidates() if os.path.exists(path)), None)


def frozen_folder(root: str, shape: Shape) -> str:
    """Where the frozen QEMU of *shape* is kept; one without taps has a user-mode network."""
    return os.path.join(root, shape.directory_name(), FOLDER)


def identity(shape: Shape) -> list[str]:
    """All that a frozen QEMU depends on, beside the files that it maps.

    The kernel is there for its vDSO, which QEMU's C library has looked into; the features of the
    CPU, since both chose their code by them.
    """
    system = os.uname()
    kernel = [system.release, system.version, _kernel_build()]
    return [FORMAT, *shape.identity(), *kernel, host_cpu(features=True)]


def _kernel_build() -> str:
    """What tells builds of one version apart: the notes hold the linker's build id."""
    try:
        with open("/sys/kernel/notes", "rb") as file:
            return f"{zlib.crc32(file.read()):08x}"
    except OSError:
        return ""


def print_of(path: str) -> list[Any]:
    """What tells whether a mapped file is still the same; OSError where there is none."""
    stat = os.stat(path)
    return [path, stat.st_size, stat.st_mtime_ns, stat.st_ino]


def load_frozen(root: str, shape: Shape) -> tuple[Frozen | None, str]:
    """The frozen QEMU of *shape* below *root*, or None where there is none that fits and is whole.

    Then also why none could be made on this host, if that was tried a short time ago.
    """
    folder = frozen_folder(root, shape)
    program = find_thaw()
    if program is None:
        return None, f"{NAME} is not there (`make agent` builds it)"
    try:
        manifest = fastjson.loads(read_text(os.path.join(folder, MANIFEST)) or "{}")
        if manifest.get("identity") != identity(shape):
            return None, ""
        if manifest["problem"]:
            # It may have been a passing one.
            is_old = time() - manifest["time"] > manifest.get("retry", RETRY_S)
            return None, "" if is_old else str(manifest["problem"])
        # QEMU's 9p server keeps as many files open as it was allowed when it was started. Whoever
        # may have more makes one for all; whoever may have less leaves it alone.
        if manifest["file_limit"] < file_limit():
            return None, ""
        if not frozen_image(folder).has_sums(manifest):
            return None, ""
        if any(print_of(known[0]) != known for known in manifest["files"]):
            return None, ""
        sizes = [os.stat(os.path.join(folder, name)).st_size for name in (MEMORY, PROCESS)]
        if sizes != [shape.memory * MIB, manifest["size"]]:
            return None, ""
        files = int(manifest["file_limit"])
        return Frozen(program, shape.qemu, folder, manifest["taps"], files), ""
    except (OSError, ValueError, KeyError, AttributeError, TypeError, IndexError):
        return None, ""
