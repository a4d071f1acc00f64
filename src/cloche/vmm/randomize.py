"""Whether the guest's kernel puts programs at random addresses (ASLR).

TCG before QEMU 8 knows translated code by its virtual address. Where each exec puts ld.so, the C
library and the program elsewhere, all of it is translated anew each time: about 2,000 blocks, 30
of 40 ms of an exec. Nothing that such a QEMU says of itself tells that but its version.
"""

from __future__ import annotations

from cloche.base.errors import ClocheError
from cloche.base.spawn import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.vmm.shape import Shape

FIRST_INDEPENDENT = 8


def is_randomized(shape: Shape) -> bool:
    """As configured; by default everywhere but under a TCG that pays for it at each exec.

    Asks QEMU for its version, so it is for boots only, not for starts from what was saved.
    """
    if shape.randomize != "auto" or shape.accel != "tcg":
        return shape.randomize != "off"
    try:
        banner = run([shape.qemu, "--version"])
    except (ClocheError, OSError):
        return True  # whoever starts it will say what is wrong with it
    return major_version(banner.decode(errors="replace")) >= FIRST_INDEPENDENT


def major_version(banner: str) -> int:
    """The first number in "QEMU emulator version 7.2.22 (…)"; a banner unlike that is a new one."""
    _, _, version = banner.partition("version ")
    digits = version.partition(".")[0]
    return int(digits) if digits.isdigit() else FIRST_INDEPENDENT
