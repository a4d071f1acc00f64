"""Where the agent's binary is. Imported on the start path: os and sys only."""

from __future__ import annotations

import os
import sys

from cloche.base.errors import NotFoundError

NAME = "cloche-agent"


def agent_candidates() -> list[str]:
    """The places where the agent is looked for; the first that exists wins.

    $CLOCHE_AGENT alone, if set; else the installed one; else the checkout's release builds.
    """
    if named := os.environ.get("CLOCHE_AGENT"):
        return [os.path.abspath(named)]
    checkout = os.path.realpath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3))
    target = os.path.join(checkout, "agent", "target")
    return [
        os.path.join(sys.prefix, "libexec", "cloche", NAME),
        os.path.join(target, "x86_64-unknown-linux-gnu", "release", NAME),
        os.path.join(target, "x86_64-unknown-linux-musl", "release", NAME),
        os.path.join(target, "release", NAME),
    ]


def find_agent() -> str | None:
    """The agent's binary, or None when it is nowhere."""
    return next((path for path in agent_candidates() if os.path.isfile(path)), None)


def require_agent() -> str:
    """The agent's binary; NotFoundError that says where it was looked for."""
    if found := find_agent():
        return found
    raise NotFoundError(
        f"{NAME}: not found at {', '.join(agent_candidates())}",
        hint="build it with `make agent`, or name it in $CLOCHE_AGENT",
    )
