"""``cloche install docker`` and ``cloche uninstall docker``: our entry in dockerd's daemon.json.

Everything else in the file stays as it is. A running dockerd takes the change over on SIGHUP,
without a restart and without touching its containers.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloche.base.errors import ConfigError
from cloche.base.files import write_atomically
from cloche.engine.commands import explained, install_parser, uninstall_parser
from cloche.engine.dockerd import Daemon, Runtimes, find_dockerd
from cloche.engine.program import NAME, check_program, this_program

CONFIG = Path("/etc/docker/daemon.json")
STOCK = "runc"
"""The runtime that dockerd always knows, and its default where the file names none."""

Config = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """What was done: to the file at *path*, and with the dockerd that runs, if one does."""

    path: Path
    changed: bool
    backup: Path | None
    daemon: str

    def __str__(self) -> str:
        lines = [f"{self.path}: {'changed' if self.changed else 'already as it should be'}"]
        if self.backup:
            lines.append(f"the file as it was: {self.backup}")
        lines.append(f"dockerd: {self.daemon}")
        return "\n".join(lines)


def install_docker(path: Path, runtime: Path, *, default: bool) -> Report:
    """Make *runtime* known to docker as ``cloche`` in the daemon.json at *path*.

    With *default* it also becomes the runtime of containers that name none; without, the default
    stays what it is. Doing it again changes nothing. Raises ConfigError for a file that cannot be
    used, which is left as it was, and ClocheError for a file that cannot be written and for a
    dockerd that does not take it over.
    """
    check_program(runtime)
    config = _read(path)
    wanted = _with_entry(path, config, runtime, default=default)
    daemon = find_dockerd(config)
    _check_flags(daemon, default=default)

    def taken(known: Runtimes) -> bool:
        is_default = known.default == NAME or not default
        return known.paths.get(NAME) == str(runtime) and is_default

    backup = _replace(path, wanted) if wanted != config else None
    return Report(path, wanted != config, backup, _tell(daemon, taken))


def uninstall_docker(path: Path) -> Report:
    """Take our entry, and our being the default, out of the daemon.json at *path*.

    Doing it again changes nothing. Raises what ``install_docker`` raises.
    """
    config = _read(path)
    wanted = _without_entry(path, config)
    if wanted == config:
        return Report(path, False, None, "nothing to do")
    daemon = find_dockerd(config)

    def taken(known: Runtimes) -> bool:
        return NAME not in known.paths and known.default != NAME

    if daemon is None:
        return Report(path, True, _replace(path, wanted), _tell(None, taken))
    # A key that is missing means "as before" to a dockerd that reloads, not "none": what is to
    # go has to be said, until dockerd has read it (moby, daemon/reload_unix.go).
    backup = _replace(path, _said_aloud(config, wanted))
    told = _tell(daemon, taken)
    if daemon.runtimes() is not None:
        _write(path, wanted)
    return Report(path, True, backup, told)


def _tell(daemon: Daemon | None, taken: Callable[[Runtimes], bool]) -> str:
    """Have a running dockerd read the file, unless it knows; a few words on what came of it."""
    if daemon is None:
        return "does not run here; it reads the file when it starts"
    known = daemon.runtimes()
    if known is not None and taken(known):
        return "knows it already"
    if daemon.reload(taken):
        return "has taken it over, its containers run on"
    return f"was told (SIGHUP to pid {daemon.pid}); {daemon.socket} does not answer"


def _check_flags(daemon: Daemon | None, *, default: bool) -> None:
    """dockerd does not start, nor reload, when a directive is a flag and in the file too."""
    flags = ["--add-runtime", *(["--default-runtime"] if default else [])]
    if daemon and (flag := daemon.flag(*flags)):
        raise ConfigError(
            f"dockerd (pid {daemon.pid}) runs with the flag {flag}: it would refuse the file",
            hint="move the flag's value into daemon.json first, then restart dockerd",
        )


def _with_entry(path: Path, config: Config, runtime: Path, *, default: bool) -> Config:
    changed = copy.deepcopy(config)
    entry = _table(path, _table(path, changed, "runtimes"), NAME)
    entry["path"] = str(runtime)
    if default:
        changed["default-runtime"] = NAME
    return changed


def _without_entry(path: Path, config: Config) -> Config:
    changed = copy.deepcopy(config)
    if NAME in _table(path, changed, "runtimes"):
        del changed["runtimes"][NAME]
    if not changed["runtimes"] and config.get("runtimes") != {}:
        del changed["runtimes"]
    if changed.get("default-runtime") == NAME:
        del changed["default-runtime"]
    return changed


def _said_aloud(config: Config, wanted: Config) -> Config:
    """*wanted*, with what it lost against *config* set to dockerd's own default."""
    defaults = {"runtimes": {}, "default-runtime": STOCK}
    lost = {key: value for key, value in defaults.items() if key in config and key not in wanted}
    return {**wanted, **lost}


def _table(path: Path, parent: Config, key: str) -> Config:
    """The object at *key* of *parent*, made if it is missing."""
    table = parent.setdefault(key, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {key!r} is not an object", hint="correct the file")
    return table


def _read(path: Path) -> Config:
    """The file as an object; a file that is missing or empty is an empty object."""
    hint = "correct the file; it was left as it is"
    text = ""
    try:
        with explained(path, "read"), suppress(FileNotFoundError):
            text = path.read_text(encoding="utf-8-sig")
        config = json.loads(text, object_pairs_hook=_unique) if text.strip() else {}
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ConfigError(f"{path}: {where}: {error.msg}", hint=hint) from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}", hint=hint) from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: not an object: it must start with {{", hint=hint)
    return config


def _unique(pairs: list[tuple[str, Any]]) -> Config:
    """An object of *pairs*; a key that is there twice would lose one of its values in silence."""
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice in one object")
    return table


def _replace(path: Path, config: Config) -> Path | None:
    """Keep a copy of the file, write *config*; the copy's path, or None if there was no file."""
    backup = None
    if path.exists():
        stamp = f"{path.name}.cloche-backup-{time.strftime('%Y%m%d-%H%M%S')}"
        free = (
            path.with_name(f"{stamp}{suffix}") for suffix in ("", *map("-{}".format, range(99)))
        )
        backup = next(name for name in free if not name.exists())
        with explained(backup, "write"):
            shutil.copy2(path, backup)
    _write(path, config)
    return backup


def _write(path: Path, config: Config) -> None:
    """Replace the file at once, with the indentation and the mode that it had."""
    target = path.resolve()  # a symbolic link stays one
    with explained(target, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        old = target.read_text(encoding="utf-8-sig") if target.exists() else ""
        mode = target.stat().st_mode & 0o7777 if target.exists() else 0o644
        indent = re.search(r"\n([ \t]+)\"", old)
        text = json.dumps(config, indent=indent[1] if indent else "    ", ensure_ascii=False)
        write_atomically(str(target), f"{text}\n".encode(), mode)


def main_install(args: list[str]) -> int:
    """``cloche install docker``; 0, or a ClocheError for the caller to print."""
    parser = _with_files(install_parser("docker"))
    chosen = parser.parse_args(args)
    runtime = chosen.runtime or this_program()
    print(install_docker(chosen.config, runtime, default=chosen.default))
    print(f"try: docker run --rm --runtime {NAME} IMAGE uname -r")
    return 0


def main_uninstall(args: list[str]) -> int:
    """``cloche uninstall docker``; 0, or a ClocheError for the caller to print."""
    parser = _with_files(uninstall_parser("docker"))
    print(uninstall_docker(parser.parse_args(args).config))
    return 0


def _with_files(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--config", type=Path, default=CONFIG, help=f"default: {CONFIG}")
    return parser
