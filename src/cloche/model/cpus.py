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


def parse_cpus(text: str) -> set[int]:
    """The numbers in a list like ``0-3,7``; ValueError with the reason when it is none."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        # These lists name processors: five digits are far beyond any kernel's NR_CPUS (8192).
        if not all(end.isascii() and end.isdigit() and len(end) < 6 for end in ends):
            raise ValueError("expected a list of processors like 0-3,7")
        low, high = int(ends[0]), int(ends[1])
        if low > high:
            raise ValueError("a range counts down")
        numbers.update(range(low, high + 1))
    return numbers
