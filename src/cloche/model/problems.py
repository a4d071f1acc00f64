"""How a field of config.json is refused: one line, JSON path first."""

from __future__ import annotations

from typing import NoReturn

from cloche.base.errors import ConfigError


def refuse(path: str, why: str, hint: str = "") -> NoReturn:
    """Raise ConfigError for the field at JSON *path* (``$.process.cwd``); *why* names the cause."""
    raise ConfigError(f"{path}: {why}", hint=hint)


def quoted(value: str) -> str:
    """*value* as it can stand in a one-line message: escaped, and cut when it is long."""
    text = value if len(value) <= 200 else value[:197] + "..."
    escaped = (sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)
    return '"' + "".join(escaped).replace('"', '\\"') + '"'


def reworded(message: str) -> str:
    """msgspec's message (``Expected … - at `$.a```) with the path first and without quotes."""
    what, at, path = message.rpartition(" - at `")
    if not at:
        what, path = message, "$"
    path = path.removesuffix("`")
    missing = what.removeprefix("Object missing required field ")
    if missing != what:
        return f"{path}.{missing.strip('`')}: missing, but required"
    return f"{path}: {what[:1].lower()}{what[1:].replace('`', '')}"
