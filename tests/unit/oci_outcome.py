"""What becomes of a config.json, whatever is in it: an error that names a field, or a plan."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from cloche.base.errors import ConfigError
from cloche.model.cgroup import limits
from cloche.model.oci import load_config
from cloche.model.plan import compile_container

from .oci_data import LAYOUT
from .plan_types import Container


def compiled(path: Path) -> dict[str, Any]:
    """The plan of the config at *path*, which the agent takes; ConfigError."""
    config = load_config(str(path))
    limits(config)
    plan, warnings = compile_container(
        config,
        bundle=str(path.parent),
        container_id="web",
        layout=LAYOUT,
        cgroup="web",
        streams=(1, 2, 3),
        terminal_size=None,
        seccomp_cache=path.parent / "seccomp",
    )
    msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=Container)
    assert all(re.match(r"\$\.[^\n]+$", warning) for warning in warnings)
    return plan


def checked(error: ConfigError) -> str:
    """What the *error* says: one line that names a field."""
    message = str(error)
    assert re.search(r"(^|: )\$[.:\[]", message), message
    assert "\n" not in message
    return message
