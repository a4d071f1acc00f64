"""What makes starts quick: less of what is costly to import."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType


def import_without(name: str, without: str) -> None:
    """Import module *name* as if *without*, which it only prefers, were not installed."""
    absent = without not in sys.modules
    if absent:
        sys.modules[without] = None  # type: ignore[assignment] # documented: ModuleNotFoundError
    try:
        __import__(name)
    finally:
        if absent:
            del sys.modules[without]


class suppress:
    """As contextlib.suppress, which costs 2 ms to import."""

    def __init__(self, *kinds: type[BaseException]) -> None:
        self._kinds = kinds

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        return kind is not None and issubclass(kind, self._kinds)
