"""Templates: a VM booted once per shape, saved when its agent is ready, cloned for every start.

The template's memory is a file; the state of its devices is a second, small one. How it works,
and what cost time to find, is in docs/templates.md. Making one is in template_maker.py; here is
only what every start needs.
"""

from __future__ import annotations

import os
import zlib

from cloche.base import fastjson
from cloche.base.files import read_text
from cloche.vmm.shape import MIB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.vmm.shape import Shape


class Template:
    """A saved VM, ready to be cloned."""

    def __init__(self, memory_file: str, state: bytes) -> None:
        self.memory_file = memory_file
        self.state = state


def load_template(root: str, shape: Shape) -> Template | None:
    """The template of *shape* below *root*, or None where there is none that fits and is whole.

    What the memory file holds is not looked at: that would cost more than the whole start.
    """
    directory = os.path.join(root, shape.directory_name())
    text = read_text(os.path.join(directory, "manifest.json"))
    try:
        manifest = fastjson.loads(text or "{}")
        if manifest.get("identity") != shape.identity():
            return None
        with open(os.path.join(directory, "device"), "rb") as file:
            state = file.read()
        memory_file = os.path.join(directory, "memory")
        is_whole = os.stat(memory_file).st_size == shape.memory * MIB
        if not is_whole or zlib.crc32(state) != manifest["device_crc32"]:
            return None
        return Template(memory_file, state)
    except (OSError, ValueError, KeyError, AttributeError):
        return None
