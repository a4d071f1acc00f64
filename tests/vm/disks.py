"""Block devices of the host, made of files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SIZE = 16 << 20


class Disk:
    """A loop device and the file behind it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with open(file, "wb") as image:
            image.truncate(SIZE)
        made = subprocess.run(
            ["losetup", "--find", "--show", str(file)], capture_output=True, text=True, check=False
        )
        if made.returncode != 0:
            pytest.skip(f"this machine makes no loop devices: {made.stderr.strip()}")
        self.path = made.stdout.strip()
        number = os.stat(self.path).st_rdev
        self.number = {"major": os.major(number), "minor": os.minor(number)}

    def node(self, path: str, **fields: object) -> dict[str, object]:
        """A node for it."""
        return {"path": path, "type": "b", **self.number, **fields}

    def rule(self, access: str) -> dict[str, object]:
        """A rule of the device controller for it."""
        return {"allow": True, "type": "b", **self.number, "access": access}

    def detach(self) -> None:
        """Take the device away again."""
        subprocess.run(["losetup", "--detach", self.path], check=True)
