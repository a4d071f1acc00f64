"""podman's ``--uidmap`` and ``--userns``: user namespaces in the guest, ids of the host's."""

from __future__ import annotations

import os
from pathlib import Path

from .client import Podman
from .scene import IMAGE

BASE = 300_000
MAPS = ("--uidmap", f"0:{BASE}:2000", "--gidmap", f"0:{BASE}:2000")


def test_files_and_users(podman: Podman, tmp_path: Path) -> None:
    """The image's files belong to root inside, what it makes to the mapped user outside."""
    volume = tmp_path / "volume"
    volume.mkdir()
    os.chown(volume, BASE, BASE)
    script = "id -u; stat -c %u:%g /etc/passwd; cat /proc/self/gid_map; "
    script += "touch /v/root /x && chown 7:8 /v/root"
    shown = podman.run(*MAPS, "-v", f"{volume}:/v", IMAGE, "sh", "-c", script).output.splitlines()
    assert shown[:2] == ["0", "0:0"]
    assert shown[2].split() == ["0", str(BASE), "2000"]
    stat = (volume / "root").stat()
    assert (stat.st_uid, stat.st_gid) == (BASE + 7, BASE + 8)


def test_exec_and_another_user(podman: Podman) -> None:
    """``exec`` is in the namespace, as whoever it says."""
    name = podman.start(*MAPS, "--user", "1000", IMAGE, "sleep", "1000")
    script = "id -u; readlink /proc/self/ns/user; readlink /proc/1/ns/user; echo out >/dev/stdout"
    uid, own, first, printed = podman.sh(name, script).splitlines()
    assert (uid, printed) == ("1000", "out")
    assert own == first
    assert podman("exec", "--user", "0", name, "id", "-u").output == "0"


def test_network(podman: Podman) -> None:
    """podman fills the network namespace after `create`: it is the container's all the same."""
    options = (*MAPS, "--network=bridge", "--cap-add=NET_ADMIN,NET_RAW")
    name = podman.start(*options, IMAGE, "sleep", "1000")
    settings = podman.inspect(name)["NetworkSettings"]["Networks"]["podman"]
    script = "ip -o -4 addr show eth0; ip link set eth0 mtu 1400; cat /sys/class/net/eth0/mtu"
    shown = podman.sh(name, script).splitlines()
    assert f"{settings['IPAddress']}/{settings['IPPrefixLen']}" in shown[0]
    assert shown[1] == "1400"
    podman.sh(name, f"ping -c 1 -W 60 {settings['Gateway']}")
