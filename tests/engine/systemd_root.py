"""A root file system whose /sbin/init is the host's systemd, with one service."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SYSTEMD = Path("/lib/systemd/systemd")
_PROGRAMS = (SYSTEMD, Path("/lib/systemd/systemd-shutdown"), Path("/bin/systemctl"))
_UNITS = Path("/lib/systemd/system")
_SERVICE = """
[Unit]
Description=what the tests look at
[Service]
ExecStart=/bin/sh -c 'echo up >/run/hello; exec sleep 100000'
ExecStop=/bin/sh -c 'echo down >/stopped/hello'
StandardOutput=null
StandardError=null
[Install]
WantedBy=default.target
"""


def add_systemd(root: Path) -> None:
    """Make *root*, which has a busybox, one that systemd comes up in."""
    if not SYSTEMD.exists():
        pytest.fail("missing tools: apt-get install systemd")
    for file in (*_PROGRAMS, *_libraries()):
        place = root / file.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, place)
    units = root / "etc/systemd/system"
    units.mkdir(parents=True)
    halt = _UNITS / "systemd-halt.service"
    for target in (*_UNITS.glob("*.target"), *_UNITS.glob("*.slice"), halt):
        if target.is_file():
            shutil.copy(target, units, follow_symlinks=True)
    (units / "hello.service").write_text(_SERVICE)
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").write_text("[Unit]\nRequires=basic.target hello.service\n")
    (root / "stopped").mkdir()
    (root / "var/log/journal").mkdir(parents=True)
    init = root / "sbin/init"
    init.unlink(missing_ok=True)  # busybox has one as well
    init.symlink_to(SYSTEMD)


def _libraries() -> list[Path]:
    """What the programs are linked with."""
    listed = subprocess.run(
        ["ldd", *map(str, _PROGRAMS)], check=True, capture_output=True, text=True
    ).stdout
    words = {word for word in listed.split() if word.startswith("/") and not word.endswith(":")}
    return [Path(word) for word in sorted(words) if os.path.exists(word)]
