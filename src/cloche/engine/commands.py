"""What `install` and `uninstall` have in common, whichever the engine."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloche.base.errors import ClocheError


def install_parser(engine: str) -> argparse.ArgumentParser:
    """The flags of ``cloche install ENGINE``, less the one that names the engine's files."""
    parser = _parser("install", engine, f"make cloche known to {engine}")
    parser.add_argument(
        "--default", action="store_true", help="use it where --runtime is not given"
    )
    parser.add_argument("--runtime", type=Path, help="the cloche command (default: this one)")
    return parser


def uninstall_parser(engine: str) -> argparse.ArgumentParser:
    """As install_parser, of ``cloche uninstall ENGINE``."""
    return _parser("uninstall", engine, f"take cloche out of {engine}'s configuration again")


def _parser(verb: str, engine: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"cloche {verb}", description=description)
    parser.add_argument("engine", choices=[engine], help="the engine to change")
    return parser


@contextmanager
def explained(path: Path, step: str) -> Iterator[None]:
    """Turn an OSError below into a ClocheError that names *path* and *step*."""
    try:
        yield
    except OSError as error:
        hint = "run it as root" if isinstance(error, PermissionError) else ""
        raise ClocheError(f"{path}: cannot {step} it: {error.strerror}", hint=hint) from None
