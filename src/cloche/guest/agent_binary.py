"""Where the agent's binary is. Imported on the start path: os, sys and pathlib only."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cloche.base.errors import NotFoundError

NAME = "cloche-agent"


def agent_candidates() -> list[Path]:
    """The places where the agent is looked for, the first match wins.

    $CLOCHE_AGENT alone, if set; else the installed one; else the checkout's release builds.
    """
    if named := os.environ.get("CLOCHE_AGENT"):
        return [Path(named)]
    checkout = Path(__file__).resolve().parents[3]
    target = checkout / "agent" / "target"
    return [
        Path(sys.prefix) / "libexec" / "cloche" / NAME,
        target / "x86_64-unknown-linux-musl" / "release" / NAME,
        target / "x86_64-unknown-linux-gnu" / "release" / NAME,
        target / "release" / NAME,
    ]


def find_agent() -> Path | None:
    """The agent's binary, or None when it is nowhere."""
    return next((path for path in agent_candidates() if path.is_file()), None)


def require_agent() -> Path:
    """The agent's binary; NotFoundError that says where it was looked for."""
    if found := find_agent():
        return found
    places = ", ".join(map(str, agent_candidates()))
    raise NotFoundError(
        f"{NAME}: not found at {places}",
        hint="build it with `make agent`, or name it in $CLOCHE_AGENT",
    )
