"""Configs that real engines wrote, and what tests need to load and compile them.

`data/*.json` were taken from the bundles of Docker 20.10, Podman 4.3, containerd 1.6 (`ctr run`)
and `runc spec`; only paths and host names were replaced.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cloche.model.oci import load_config
from cloche.model.plan import Layout, compile_container

DATA = Path(__file__).parent / "data"
ENGINES = sorted(
    path.stem for path in DATA.glob("*.json") if not path.stem.endswith("-exec-process")
)
LAYOUT = Layout(rootfs="/run/share/rootfs", volume=lambda index: f"/run/share/volume/{index}")
_FILES = (
    "hostname",
    "hosts",
    "resolv.conf",
    "f",
    "docker-init",
    ".containerenv",
    "passwd",
    "group",
)


def raw(name: str) -> dict[str, Any]:
    """The config of that name as plain JSON values."""
    return dict(json.loads((DATA / f"{name}.json").read_text()))


def write(folder: Path, config: object) -> str:
    """Write *config* as *folder*/config.json; returns the path."""
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return str(path)


def with_sources(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Move the sources of bind mounts below *folder* and make them there, so that they exist."""
    for mount in config["mounts"]:
        if "bind" not in mount.get("type", ""):
            continue
        source = folder / mount["source"].lstrip("/")
        if source.name in _FILES:
            source.parent.mkdir(parents=True, exist_ok=True)
            source.touch()
        else:
            source.mkdir(parents=True, exist_ok=True)
        mount["source"] = str(source)
    return config


def compiled(
    config: dict[str, Any], folder: Path, cache: Path | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The plan for *config*, written to and loaded from *folder*, and the warnings."""
    return compile_container(
        load_config(write(folder, config)),
        bundle=str(folder),
        container_id="web",
        layout=LAYOUT,
        cgroup="cloche/web",
        streams=(1, 2, 3),
        terminal_size=None,
        seccomp_cache=cache,
    )
