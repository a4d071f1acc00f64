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
from cloche.vmm.integrity import MANIFEST, Image
from cloche.vmm.shape import MIB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.vmm.shape import Shape

MEMORY = "memory"


class Template:
    """A saved VM, ready to be cloned."""

    def __init__(self, image: Image, state: bytes) -> None:
        self.image = image
        self.memory_file = image.path(MEMORY)
        self.state = state


def template_image(directory: str) -> Image:
    """What is verified of the template there; the state of its devices is, at each start."""
    return Image(directory, (MEMORY,))


def load_template(root: str, shape: Shape) -> Template | None:
    """The template of *shape* below *root*, or None where there is none that fits and is whole.

    What the memory file holds is not looked at: that would cost more than the whole start. Who
    looks at it, and when, is in integrity.py.
    """
    image = template_image(os.path.join(root, shape.directory_name()))
    text = read_text(image.path(MANIFEST))
    try:
        manifest = fastjson.loads(text or "{}")
        if manifest.get("identity") != shape.identity() or not image.has_sums(manifest):
            return None
        with open(image.path("device"), "rb") as file:
            state = file.read()
        is_whole = os.stat(image.path(MEMORY)).st_size == shape.memory * MIB
        if not is_whole or zlib.crc32(state) != manifest["device_crc32"]:
            return None
        return Template(image, state)
    except (OSError, ValueError, KeyError, AttributeError):
        return None
