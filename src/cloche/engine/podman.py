"""``cloche install podman`` and ``cloche uninstall podman``: a containers.conf drop-in of our own.

podman reads /etc/containers/containers.conf and then every file of containers.conf.d by name;
tables are merged, so nobody's file has to be edited (containers.conf(5)). It has no daemon: the
next command knows the runtime.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloche.base.errors import ConfigError
from cloche.base.files import write_atomically
from cloche.engine.commands import explained, install_parser, uninstall_parser
from cloche.engine.program import NAME, check_program, this_program

DIRECTORY = Path("/etc/containers/containers.conf.d")
FILE = "cloche.conf"
_HEAD = "# Made by `cloche install podman`; `cloche uninstall podman` removes it.\n"


@dataclass(frozen=True)
class Report:
    """What was done to the drop-in at *path*, and which files say otherwise after it."""

    path: Path
    done: str
    overruled: list[str]

    def __str__(self) -> str:
        return "\n".join([f"{self.path}: {self.done}", *self.overruled])


def install_podman(directory: Path, runtime: Path, *, default: bool) -> Report:
    """Make *runtime* known to podman as ``cloche`` by a drop-in in *directory*.

    With *default* it also becomes the runtime of containers that name none; without, that stays
    as an earlier installation left it. Doing it again changes nothing. Raises ConfigError for a
    drop-in of that name which is not ours, and ClocheError where it cannot be written.
    """
    check_program(runtime)
    path = directory / FILE
    old = _read_own(path)
    is_default = default or (old or {}).get("engine", {}).get("runtime") == NAME
    lines = [_HEAD, "[engine]\n", f'runtime = "{NAME}"\n\n'] if is_default else [_HEAD]
    lines += ["[engine.runtimes]\n", f"{NAME} = [{json.dumps(str(runtime))}]\n"]
    text = "".join(lines)
    overruled = _overruled(directory, runtime, default=is_default)
    if old is not None and path.read_text(encoding="utf-8") == text:
        return Report(path, "already as it should be", overruled)
    with explained(path, "write"):
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(str(path), text.encode(), 0o644)
    return Report(path, "written" if old is None else "changed", overruled)


def uninstall_podman(directory: Path) -> Report:
    """Remove our drop-in from *directory*; doing it again changes nothing. Raises as above."""
    path = directory / FILE
    if _read_own(path) is None:
        return Report(path, "not there: nothing to do", [])
    with explained(path, "remove"):
        path.unlink()
    return Report(path, "removed", [])


def _read_own(path: Path) -> dict[str, Any] | None:
    """Our drop-in, None where there is none; ConfigError when it holds what we never write."""
    hint = "move the file away, or what it says into a file of another name"
    try:
        config = _read(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}", hint=hint) from None
    engine = config.get("engine", {})
    runtimes = engine.get("runtimes", {}) if isinstance(engine, dict) else None
    known = set(config) <= {"engine"} and set(engine) <= {"runtime", "runtimes"}
    if not known or not isinstance(runtimes, dict) or not set(runtimes) <= {NAME}:
        raise ConfigError(f"{path}: it says more than cloche would write there", hint=hint)
    return config


def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _overruled(directory: Path, runtime: Path, *, default: bool) -> list[str]:
    """What files that are read after ours say about the same."""
    notes = []
    for path in sorted(directory.glob("*.conf")):
        if path.name <= FILE:
            continue
        try:
            engine = _read(path).get("engine", {})
            other, named = engine.get("runtime", NAME), engine.get("runtimes", {}).get(NAME)
        except (OSError, ValueError, AttributeError):
            notes.append(f"{path}: cannot be read, so podman may not start at all")
            continue
        if default and other != NAME:
            notes.append(f"{path}: read later, and makes {other} the default")
        if named is not None and named != [str(runtime)]:
            notes.append(f"{path}: read later, and names another {NAME}: {named}")
    return notes


def main_install(args: list[str]) -> int:
    """``cloche install podman``; 0, or a ClocheError for the caller to print."""
    parser = _with_files(install_parser("podman"))
    chosen = parser.parse_args(args)
    runtime = chosen.runtime or this_program()
    print(install_podman(chosen.config_dir, runtime, default=chosen.default))
    print(f"try: podman --runtime {NAME} run --rm IMAGE uname -r")
    return 0


def main_uninstall(args: list[str]) -> int:
    """``cloche uninstall podman``; 0, or a ClocheError for the caller to print."""
    parser = _with_files(uninstall_parser("podman"))
    print(uninstall_podman(parser.parse_args(args).config_dir))
    return 0


def _with_files(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--config-dir", type=Path, default=DIRECTORY, help=f"default: {DIRECTORY}")
    return parser
