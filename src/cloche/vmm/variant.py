"""Which way to spell a VM's machine this host's QEMU starts a kernel with, once it is known.

What one QEMU starts in a third of a second another never does, and its version does not tell:
distributions change both. So `argv.variants` are tried in order (trial.py), where a template is
made or a first VM boots cold, and what came of it is kept for as long as QEMU stays the same.
"""

from __future__ import annotations

import os

from cloche.base import fastjson
from cloche.base.files import read_text, write_atomically
from cloche.vmm.argv import variants
from cloche.vmm.shape import build_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cloche.vmm.argv import Variant

FILE = "machines.json"


class Variants:
    """The variants of a *machine* type, or `auto`, for one *qemu* and accelerator.

    *refused* tells of each that was tried in vain why; it *is_known* when one of them worked.
    """

    def __init__(self, data_root: str, qemu: str, accel: str, machine: str) -> None:
        self._path = os.path.join(data_root, FILE)
        self._key = " ".join([machine, accel, build_of(qemu)])
        self.qemu = qemu
        self.accel = accel
        self._machine = machine
        self._all = variants(accel, machine)
        self.is_known = False
        # Where the guest's kernel puts programs, as configured (randomize.py).
        self.randomize = "auto"
        # Who serves the host's files.
        self.files = "9p"
        self.refused: list[str] = []
        self.load()

    def load(self) -> None:
        """See what is known by now."""
        found = _read(self._path).get(self._key)
        names = [str(variant) for variant in self._all]
        if isinstance(found, dict) and found.get("works") in names:
            self._all.insert(0, self._all.pop(names.index(found["works"])))
            self.is_known = True
            self.refused = [str(text) for text in found.get("refused", ())]

    @property
    def best(self) -> Variant:
        """The one that is known to work, else the first to be tried."""
        return self._all[0]

    @property
    def advice(self) -> str:
        """What to try where none of them works."""
        other = "try another QEMU: `qemu`"
        return other if self._machine == "auto" else f"set `machine` to auto, or {other}"

    def in_order(self) -> list[Variant]:
        """All of them, the best one first."""
        return list(self._all)

    def keep(self, works: Variant, refused: list[str]) -> None:
        """Have every later start take *works*; OSError where that cannot be written.

        What is known of QEMUs that are not there any more is forgotten.
        """
        self.is_known, self.refused = True, refused
        self._all.remove(works)
        self._all.insert(0, works)
        known = {
            key: value
            for key, value in _read(self._path).items()
            if isinstance(value, dict) and build_of(str(value.get("qemu"))) in key
        }
        known[self._key] = {"qemu": self.qemu, "works": str(works), "refused": refused}
        write_atomically(self._path, fastjson.dumps(known).encode())


def _read(path: str) -> dict[str, Any]:
    try:
        found = fastjson.loads(read_text(path) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
