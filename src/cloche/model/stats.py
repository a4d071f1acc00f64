"""What a container uses, read from files of its cgroup v2, in the shape of `runc events`.

The names are those of runc's types/events.go; a value that cgroup v2 does not count is left out or
0, as runc has it there.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    Texts = Mapping[str, str | None]

UNLIMITED = (1 << 64) - 1
_MOST_PROCESSORS = 8192  # the kernel's NR_CPUS at most
_HUGE_PAGES = ("2MB", "1GB")  # those that x86-64 has

FILES = (
    *("cpu.stat", "cpuset.cpus.effective", "cpuset.mems.effective"),
    *("memory.current", "memory.max", "memory.peak", "memory.stat", "memory.events"),
    *("memory.swap.current", "memory.swap.max", "memory.swap.events"),
    *("pids.current", "pids.max", "io.stat"),
    *(f"hugetlb.{size}.{name}" for size in _HUGE_PAGES for name in ("current", "events")),
)


def container_stats(texts: Texts) -> dict[str, Any]:
    """The `data` of a stats event from the contents of FILES (None: there is no such file)."""
    return {
        "cpu": _cpu(pairs(texts.get("cpu.stat"))),
        "cpuset": {
            "cpus": _numbers(texts.get("cpuset.cpus.effective")),
            "mems": _numbers(texts.get("cpuset.mems.effective")),
        },
        "memory": _memory(texts),
        "pids": {
            "current": number(texts.get("pids.current")),
            "limit": number(texts.get("pids.max")),
        },
        "blkio": _block_io(texts.get("io.stat") or ""),
        "hugetlb": {
            size: {
                "usage": number(texts.get(f"hugetlb.{size}.current")),
                "failcnt": pairs(texts.get(f"hugetlb.{size}.events")).get("max", 0),
            }
            for size in _HUGE_PAGES
            if texts.get(f"hugetlb.{size}.current") is not None
        },
        "intel_rdt": {},
        "network_interfaces": None,
    }


def number(text: str | None, unlimited: int = 0) -> int:
    """The number that a file holds; *unlimited* for `max`, 0 where there is no file."""
    text = (text or "").strip()
    return unlimited if text == "max" else whole(text or "0")


def whole(text: str) -> int:
    """The number from 0 to 2^64 - 1 that *text* is; ValueError: the guest is not trusted."""
    if not (text.isascii() and text.isdigit()) or (value := int(text[:21])) > UNLIMITED:
        raise ValueError(f"{text[:40]!r} is no number of a cgroup")
    return value


def pairs(text: str | None) -> dict[str, int]:
    """The lines `key number` of a file."""
    words = (line.split() for line in (text or "").splitlines())
    return {pair[0]: whole(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdigit()}


def _numbers(text: str | None) -> list[int]:
    """The numbers of a list like ``0-3,7``; the guest is not trusted with how many there are."""
    found: list[int] = []
    for part in (text or "").strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and len(found) < _MOST_PROCESSORS:
            end = min(whole(last or first), _MOST_PROCESSORS)
            found += range(whole(first), end + 1)
    return found


def _cpu(stat: dict[str, int]) -> dict[str, Any]:
    """cpu.stat, whose microseconds become nanoseconds."""
    return {
        "usage": {
            "total": stat.get("usage_usec", 0) * 1000,
            "kernel": stat.get("system_usec", 0) * 1000,
            "user": stat.get("user_usec", 0) * 1000,
        },
        "throttling": {
            "periods": stat.get("nr_periods", 0),
            "throttledPeriods": stat.get("nr_throttled", 0),
            "throttledTime": stat.get("throttled_usec", 0) * 1000,
        },
    }


def _memory(texts: Texts) -> dict[str, Any]:
    stat, events = pairs(texts.get("memory.stat")), pairs(texts.get("memory.events"))
    usage = {
        "limit": number(texts.get("memory.max"), UNLIMITED),
        "usage": number(texts.get("memory.current")),
        "max": number(texts.get("memory.peak")),
        "failcnt": events.get("max", 0),
    }
    # Memory and swap together, as cgroup v1 counts and runc tells.
    swap_limit = number(texts.get("memory.swap.max"), UNLIMITED)
    swap = {
        "limit": min(UNLIMITED, usage["limit"] + swap_limit),
        "usage": usage["usage"] + number(texts.get("memory.swap.current")),
        "failcnt": pairs(texts.get("memory.swap.events")).get("max", 0),
    }
    kernel = {"limit": UNLIMITED, "usage": stat.get("kernel", 0), "failcnt": 0}
    tcp = {"limit": UNLIMITED, "usage": stat.get("sock", 0), "failcnt": 0}
    return {
        "cache": stat.get("file", 0),
        "usage": usage,
        "swap": swap,
        "kernel": kernel,
        "kernelTCP": tcp,
        "raw": stat,
        "event_count": events,
    }


_TABLES = {
    "rbytes": ("ioServiceBytesRecursive", "Read"),
    "wbytes": ("ioServiceBytesRecursive", "Write"),
    "rios": ("ioServicedRecursive", "Read"),
    "wios": ("ioServicedRecursive", "Write"),
}


def _block_io(text: str) -> dict[str, list[dict[str, Any]]]:
    """io.stat, whose lines are `major:minor key=number …` of the guest's block devices."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for line in text.splitlines():
        device, *values = line.split()
        major, _, minor = device.partition(":")
        for name, _, value in (word.partition("=") for word in values):
            if name in _TABLES:
                table, op = _TABLES[name]
                entry = {
                    "major": whole(major),
                    "minor": whole(minor),
                    "op": op,
                    "value": whole(value),
                }
                tables.setdefault(table, []).append(entry)
    return tables
