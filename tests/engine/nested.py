"""An image with Docker in it, made of the host's own programs: no registry is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from .client import Docker

IMAGE = "docker-in-docker"
_TOOL = Path(__file__).resolve().parents[2] / "tools" / "busybox-image"
_PROGRAMS = (
    *("dockerd", "docker-proxy", "docker-init", "containerd", "containerd-shim-runc-v2", "runc"),
    *("ip", "xtables-nft-multi", "xtables-legacy-multi"),
)
_NAMES = {
    "iptables": "xtables-nft-multi",
    "ip6tables": "xtables-nft-multi",
    "iptables-legacy": "xtables-legacy-multi",
}
# What docker's own image does at its start: move the processes out of the way of controllers, start
# the daemon. containerd comes first, since dockerd waits 15 s for one that it starts itself.
START = """\
set -e
mkdir /sys/fs/cgroup/init
for pid in $(cat /sys/fs/cgroup/cgroup.procs); do
    echo $pid >/sys/fs/cgroup/init/cgroup.procs || true
done
sed 's/ / +/g; s/^/+/' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
await() { # SOCKET PID LOG
    while ! [ -S $1 ]; do
        kill -0 $2 || { cat $3; exit 1; }
        sleep 0.2
    done
}
mkdir -p /run/containerd
containerd --root /var/lib/docker/containerd >/log.containerd 2>&1 &
await /run/containerd/containerd.sock $! /log.containerd
dockerd --containerd /run/containerd/containerd.sock "$@" >/log.dockerd 2>&1 &
await /var/run/docker.sock $! /log.dockerd
tar -C /inner -c . | docker import - inner
echo ready
wait
"""


def build_image(docker: Docker, directory: Path) -> None:
    """Import IMAGE, whose /start starts Docker, knowing the image `inner`, and says `ready`."""
    root = directory / "rootfs"
    for folder in (root, root / "inner"):
        folder.mkdir(parents=True, exist_ok=folder != root)
        if folder == root:
            _busybox(root)
    (root / "inner/bin").mkdir()
    shutil.copy(root / "bin/busybox", root / "inner/bin/busybox")
    for applet in ("sh", "echo", "cat", "ip", "httpd", "wget"):
        (root / "inner/bin" / applet).symlink_to("busybox")
    (root / "sbin/ip").unlink()
    for name in _PROGRAMS:
        _copy(_found(name), name, root)
    _copy(docker.argv[0], "docker", root)
    for name, program in _NAMES.items():
        (root / "usr/local/bin" / name).symlink_to(program)
    for extension in Path("/usr/lib").glob("*/xtables/*.so"):
        _place(extension, root)
    (root / "start").write_text(START)
    (root / "var/lib/docker").mkdir(parents=True)
    archive = directory / "rootfs.tar"
    subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
    docker("import", str(archive), IMAGE)


def _busybox(root: Path) -> None:
    subprocess.run([str(_TOOL), "rootfs", str(root)], check=True, capture_output=True)
    (root / "usr/local/bin").mkdir(parents=True)


def _found(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin:/usr/libexec/docker")
    assert found, f"{name}: not on this machine"
    return found


def _copy(program: str, name: str, root: Path) -> None:
    """A program as /usr/local/bin/*name*, and the libraries that it is linked with."""
    real = Path(program).resolve()
    shutil.copy(real, root / "usr/local/bin" / name)
    linked = subprocess.run(["ldd", str(real)], capture_output=True, text=True, check=False)
    for library in re.findall(r"(/\S+) \(0x", linked.stdout):
        _place(Path(library), root)


def _place(file: Path, root: Path) -> None:
    """A file of the host at its own path, with what it links to as its contents."""
    place = root / str(file).lstrip("/")
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file.resolve(), place)
