"""What the commands of bench/ that write docs/benchmarks.md are told alike."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def own_cloche() -> Path:
    """The command beside this Python."""
    return Path(sys.executable).parent / "cloche"


def add_outputs(parser: argparse.ArgumentParser, place: str, *, partial: str) -> None:
    """Where results go, and the command that is measured.

    *place* says what becomes of the file; with the flags of *partial* it is left alone.
    """
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"{place}, besides stdout (default docs/benchmarks.md; with {partial} nowhere, since "
        "that would replace a full table with less)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw numbers there")
    parser.add_argument(
        "--cloche",
        type=Path,
        default=own_cloche(),
        metavar="PATH",
        help="the cloche command to measure (default: the one beside this Python)",
    )
