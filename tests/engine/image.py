"""The image that the tests run: Debian's static busybox and a user, built without a registry."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .client import Docker

IMAGE = "busybox"
USER_ID = 1000
EXTRA_GROUP_ID = 2000
INTERFACES = "cd /sys/class/net && echo *"
"""A script that names the interfaces there are. Its one look is at the folder: ``ls`` looks at each
entry as well, and fails if one goes in between."""
TOOL = Path(__file__).resolve().parents[2] / "tools" / "busybox-image"


def build_image(docker: Docker, directory: Path) -> None:
    """Import ``busybox``: /etc/passwd knows ``app`` (1000:1000), who is in ``extra`` (2000) too."""
    root = directory / "rootfs"
    root.mkdir(parents=True)
    subprocess.run([str(TOOL), "rootfs", str(root)], check=True, capture_output=True)
    with (root / "etc/passwd").open("a") as passwd:
        passwd.write(f"app:x:{USER_ID}:{USER_ID}:app:/home/app:/bin/sh\n")
    with (root / "etc/group").open("a") as group:
        group.write(f"app:x:{USER_ID}:\nextra:x:{EXTRA_GROUP_ID}:app\n")
    (root / "home/app").mkdir()
    os.chown(root / "home/app", USER_ID, USER_ID)
    archive = directory / "rootfs.tar"
    subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
    docker("import", "--change", 'CMD ["sh"]', str(archive), IMAGE)
