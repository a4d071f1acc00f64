"""What a VM costs the host: the numbers of its cgroup there, v1 or v2."""

from __future__ import annotations

import os

from cloche.base.files import read_text
from cloche.host.cgroup import hierarchies
from cloche.model.stats import UNLIMITED, number, pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# cgroup v1 says "no limit" by the largest multiple of the page size.
_V1_UNLIMITED = 0x7FFF_FFFF_FFFF_F000


def vm_usage(path: str) -> dict[str, Any]:
    """Processor time, memory and processes of the host's cgroup *path*.

    The names are those of `runc events`, times in ns, sizes in bytes; what no controller of the
    host counts is left out.
    """
    texts: dict[str, str] = {}
    for hierarchy in hierarchies():
        for name in _FILES:
            text = read_text(os.path.join(hierarchy, path, name))
            if text is not None:
                texts.setdefault(name, text)
    found: dict[str, Any] = {}
    total = _total(texts)
    if total is not None:
        found["cpu"] = {"usage": {"total": total}}
    for names in (_MEMORY_V2, _MEMORY_V1):
        if names[0] in texts:
            used, limit, most = (texts.get(name) for name in names)
            bound = number(limit, UNLIMITED)
            found["memory"] = {
                "usage": {
                    "limit": UNLIMITED if bound >= _V1_UNLIMITED else bound,
                    "usage": number(used),
                    "max": number(most),
                }
            }
            break
    if "pids.current" in texts:
        current, limit = texts["pids.current"], texts.get("pids.max")
        found["pids"] = {"current": number(current), "limit": number(limit)}
    return found


_MEMORY_V1 = ("memory.usage_in_bytes", "memory.limit_in_bytes", "memory.max_usage_in_bytes")
_MEMORY_V2 = ("memory.current", "memory.max", "memory.peak")
_FILES = (*_MEMORY_V1, *_MEMORY_V2, "cpuacct.usage", "cpu.stat", "pids.current", "pids.max")


def _total(texts: dict[str, str]) -> int | None:
    """Processor time in ns."""
    if "cpuacct.usage" in texts:
        return number(texts["cpuacct.usage"])
    microseconds = pairs(texts.get("cpu.stat")).get("usage_usec")  # v1's cpu.stat has none
    return None if microseconds is None else microseconds * 1000
