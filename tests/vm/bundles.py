"""Bundles: a config.json to change in Python, and a root file system made of Debian's busybox."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Self

from cloche.model.spec import default_spec

_TOOL = Path(__file__).resolve().parents[2] / "tools" / "busybox-image"


def build_root(directory: Path) -> None:
    """Make the root file system that bundles get a copy of."""
    subprocess.run([str(_TOOL), "rootfs", str(directory)], check=True, capture_output=True)


class Bundle:
    """A folder with config.json and rootfs; ``config`` is written by ``save``.

    It is what `cloche spec` writes, without a terminal and with a root that can be written.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self.path = path
        self.rootfs = path / "rootfs"
        path.mkdir(parents=True)
        subprocess.run(["cp", "-a", str(root), str(self.rootfs)], check=True)
        config: Any = default_spec()
        config["process"]["terminal"] = False
        config["root"]["readonly"] = False
        self.config: dict[str, Any] = config

    @property
    def process(self) -> dict[str, Any]:
        """The ``process`` section."""
        process: dict[str, Any] = self.config["process"]
        return process

    @property
    def linux(self) -> dict[str, Any]:
        """The ``linux`` section."""
        linux: dict[str, Any] = self.config["linux"]
        return linux

    def args(self, *argv: str) -> Self:
        """Run *argv*."""
        self.process["args"] = list(argv)
        return self

    def sh(self, script: str) -> Self:
        """Run a shell *script*."""
        return self.args("sh", "-c", script)

    def mount(self, destination: str, kind: str, source: object = "", *options: str) -> Self:
        """Add a mount."""
        mount = {"destination": destination, "type": kind, "source": str(source or kind)}
        self.config["mounts"].append({**mount, "options": list(options)})
        return self

    def without_mount(self, destination: str) -> Self:
        """Leave out the default mount at *destination*."""
        mounts = self.config["mounts"]
        self.config["mounts"] = [each for each in mounts if each["destination"] != destination]
        return self

    def capabilities(self, *names: str, ambient: bool = False) -> Self:
        """Give it exactly these; *ambient*: so that users other than root have them too."""
        kinds = ["bounding", "effective", "permitted"]
        kinds += ["inheritable", "ambient"] if ambient else []
        self.process["capabilities"] = {kind: list(names) for kind in kinds}
        return self

    def save(self) -> Path:
        """Write config.json; the bundle's folder."""
        self.write(json.dumps(self.config))
        return self.path

    def write(self, text: str) -> Path:
        """Write *text* as config.json, whatever it is; the bundle's folder."""
        (self.path / "config.json").write_text(text)
        return self.path
