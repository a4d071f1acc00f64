"""How a field of config.json is refused: one line, JSON path first."""

from __future__ import annotations

from cloche.base.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def refuse(path: str, why: str, hint: str = "") -> NoReturn:
    """Raise ConfigError for the field at JSON *path* (``$.process.cwd``); *why* names the cause."""
    raise ConfigError(f"{path}: {why}", hint=hint)


def quoted(value: str) -> str:
    """*value* as it can stand in a one-line message: escaped, and cut when it is long."""
    text = value if len(value) <= 200 else value[:197] + "..."
    escaped = (sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)
    return '"' + "".join(escaped).replace('"', '\\"') + '"'
