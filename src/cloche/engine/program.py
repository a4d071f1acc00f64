"""The command that engines are told to call."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from cloche.base.errors import ClocheError, ConfigError

NAME = "cloche"
"""What the runtime is called in an engine's configuration."""


def check_program(path: Path) -> None:
    """ConfigError unless *path* is one that an engine can call."""
    if not path.is_absolute():
        raise ConfigError(f"{path}: not an absolute path", hint="the engine needs one")
    if not os.access(path, os.X_OK) or path.is_dir():
        raise ConfigError(f"{path}: not a program", hint="name the cloche command: --runtime")


def this_program() -> Path:
    """The command that was typed: found in PATH, or by its own path."""
    typed = sys.argv[0]
    found = shutil.which(typed) or shutil.which(NAME)
    if found is None:
        raise ClocheError(f"{typed}: the cloche command was not found", hint="name it: --runtime")
    return Path(os.path.abspath(found))
