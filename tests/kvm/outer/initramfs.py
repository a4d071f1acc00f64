"""The outer VM's initramfs: busybox, modules, and a script that runs one command and powers off."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from cloche.base.errors import NotFoundError
from cloche.guest.initramfs import Entry, directory, file, pack

BUSYBOX = Path("/bin/busybox")
SHARE_TAG = "host"

# The machine's own files, read-only, under a tmpfs: what is on the machine (QEMU, Python, this
# checkout) is in the VM at the same path, and nothing that the VM writes gets out. /run is new:
# the machine's containers are none of the VM's.
_SCRIPT = """\
#!/bin/busybox sh
busybox mount -t devtmpfs dev /dev
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
for module in {modules}; do
    busybox insmod /modules/$module || echo "init: $module: not loaded"
done
busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro {tag} /host
busybox mount -t tmpfs over /over
busybox mkdir /over/upper /over/work
busybox mount -t overlay -o lowerdir=/host,upperdir=/over/upper,workdir=/over/work root /root
for path in dev proc sys; do busybox mount -o move /$path /root/$path; done
busybox mkdir -p /root/dev/shm /root/dev/pts
busybox mount -t tmpfs -o mode=1777 tmpfs /root/dev/shm
busybox mount -t tmpfs -o mode=0755,size=80% tmpfs /root/run
busybox mount -t devpts -o ptmxmode=0666 devpts /root/dev/pts
busybox ln -sf pts/ptmx /root/dev/ptmx
busybox mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
busybox ip link set lo up
echo "init: the outer VM is up"
busybox chroot /root {command}
echo "init: the command ended with $?"
busybox poweroff -f
"""


def build_initramfs(
    modules: Sequence[Path], folder: Path, command: Sequence[str], environment: Mapping[str, str]
) -> bytes:
    """The archive; *command* runs in *folder* as on the host, with *environment* and no more.

    Its output goes to the console. NotFoundError when busybox is missing.
    """
    if not BUSYBOX.is_file():
        raise NotFoundError(f"{BUSYBOX}: not there", hint="try: apt-get install busybox-static")
    settings = [f"{name}={value}" for name, value in environment.items()]
    words = ["/usr/bin/env", "-i", "-C", os.fspath(folder), *settings, *command]
    script = _SCRIPT.format(
        modules=" ".join(path.name for path in modules), tag=SHARE_TAG, command=shlex.join(words)
    )
    return pack(
        [
            *(directory(name) for name in ("bin", "dev", "host", "modules", "over", "proc")),
            *(directory(name) for name in ("root", "sys")),
            Entry("dev/console", 0o020600, device=(5, 1)),
            file("bin/busybox", BUSYBOX.read_bytes(), 0o755),
            file("init", script.encode(), 0o755),
            *(file(f"modules/{path.name}", path.read_bytes()) for path in modules),
        ]
    )
