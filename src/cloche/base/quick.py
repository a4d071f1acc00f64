"""What makes starts quick: less of what is costly to import."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType, TracebackType


class _Unused:
    """In place of a class whose values nobody here has."""

    unknown = None


# What msgspec imports beside what cloche has use for, and what it takes of each: UUIDs, decimals,
# schemas and other formats are a third of the 14 ms that it costs. None: it does without as well.
_UNUSED_BY_MSGSPEC: dict[str, tuple[str, ...] | None] = {
    "typing_extensions": None,
    "uuid": ("UUID", "SafeUUID"),
    "decimal": ("Decimal",),
    "msgspec._json_schema": ("schema", "schema_components"),
    "msgspec.inspect": (),
    "msgspec.toml": (),
    "msgspec.yaml": (),
}


def import_msgspec() -> None:
    """Import msgspec without most of what it imports; those modules can be imported later."""
    absent = [name for name in _UNUSED_BY_MSGSPEC if name not in sys.modules]
    for name in absent:
        sys.modules[name] = _stand_in(name)  # type: ignore[assignment] # documented: None
    try:
        __import__("msgspec")
    except (AttributeError, ImportError):  # a version that takes more of them
        for name in [name for name in sys.modules if name.partition(".")[0] == "msgspec"]:
            del sys.modules[name]
    finally:
        for name in absent:
            sys.modules.pop(name, None)
    __import__("msgspec")


def _stand_in(name: str) -> ModuleType | None:
    attributes = _UNUSED_BY_MSGSPEC[name]
    if attributes is None:
        return None
    module = type(sys)(name)
    module.__dict__.update(dict.fromkeys(attributes, _Unused))
    return module


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
