"""How many processors a container may use; asked on the start path, so it imports nothing."""

from __future__ import annotations

DEFAULT_PERIOD = 100_000  # µs; the kernel's own


def cpu_limit(quota: int | None, period: int | None, cpus: str | None) -> float | None:
    """Processors' worth of time that linux.resources.cpu allows; None where it sets no limit.

    *quota* and *period* in µs, *cpus* a list of processors. ValueError for a list that is none.
    """
    limits: list[float] = []
    if quota is not None and quota > 0:
        limits.append(quota / (period or DEFAULT_PERIOD))
    if cpus:
        limits.append(len(parse_cpus(cpus)))
    return min(limits, default=None)


# Longer lists are no kernel's: a file of a cgroup takes a page, and CONFIG_NR_CPUS is 8192 at most.
_LONGEST = 4095
_MOST_NUMBER = 8191


def parse_cpus(text: str, what: str = "processor") -> set[int]:
    """The numbers in a list like ``0-3,7``; ValueError with the reason when it is none."""
    if len(text) > _LONGEST:
        raise ValueError(f"a list of {len(text)} characters, at most {_LONGEST}")
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(end.isascii() and end.isdigit() and len(end) < 6 for end in ends):
            raise ValueError(f"expected a list of {what}s like 0-3,7")
        low, high = int(ends[0]), int(ends[1])
        if max(low, high) > _MOST_NUMBER:
            raise ValueError(f"no kernel has a {what} {max(low, high)}")
        if low > high:
            raise ValueError("a range counts down")
        numbers.update(range(low, high + 1))
    return numbers
