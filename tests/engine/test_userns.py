"""``dockerd --userns-remap``: root in containers is nobody special on the host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .client import Docker
from .conftest import docker_program, runtimes_for
from .dockerd import dockerd, wait_until
from .image import IMAGE, build_image

BASE = 200_000


@pytest.fixture(scope="module")
def remapped(request: pytest.FixtureRequest, runtime: str, short_path: Path) -> Iterator[Docker]:
    """The docker command line of a dockerd whose containers get user namespaces."""
    directory = short_path / "u"
    directory.mkdir()
    # A shared kernel has the remapped root walk to its files.
    short_path.chmod(0o711)
    ranges = directory / "ranges"
    ranges.write_text(f"daemon:{BASE}:65536\n")
    files = {"/etc/subuid": ranges, "/etc/subgid": ranges}
    flags = ("--userns-remap", "daemon:daemon")
    with dockerd(directory, runtimes_for(request, runtime), flags, files) as engine:
        docker = Docker(engine, runtime, docker_program())
        build_image(docker, short_path / "image-u")
        yield docker
        docker.clean_up()


def test_root_is_mapped(remapped: Docker) -> None:
    """The mapping is dockerd's, and the files of the image belong to root all the same."""
    script = (
        "id -u; cat /proc/self/uid_map; stat -c %u:%g /etc/passwd /home/app; touch /x && echo x"
    )
    uid, mapping, *rest = remapped.run(IMAGE, "sh", "-c", script).output.splitlines()
    assert uid == "0"
    assert mapping.split() == ["0", str(BASE), "65536"]
    assert rest == ["0:0", "1000:1000", "x"]


def test_files_in_a_volume_belong_to_the_mapped_user(remapped: Docker, tmp_path: Path) -> None:
    """What root and others make in a bind mount has the ids of the mapping on the host."""
    folder = tmp_path / "folder"
    folder.mkdir()
    os.chown(folder, BASE, BASE)
    script = "touch /v/root; chown 7:8 /v/root; touch /v/mine"
    remapped.run("-v", f"{folder}:/v", IMAGE, "sh", "-c", script)
    owners = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in folder.iterdir()}
    assert owners == {"root": (BASE + 7, BASE + 8), "mine": (BASE, BASE)}


def test_a_users_own_files_and_standard_streams(remapped: Docker) -> None:
    """Another user than root can use its home and open its standard output again."""
    script = "echo a >~/file && cat ~/file; echo b >/dev/stdout; echo c >/dev/null; id -G"
    result = remapped.run("--user", "app", IMAGE, "sh", "-c", script)
    assert result.output.splitlines() == ["a", "b", "1000 2000"]


def test_network_and_low_ports(remapped: Docker) -> None:
    """The network is the container's own: root in it may change it, and binds port 80."""
    serve = "echo hello >/index.html; exec httpd -f -p 80 -h /"
    server = remapped.start("--cap-add", "NET_ADMIN", IMAGE, "sh", "-c", serve)
    address = remapped("inspect", "-f", "{{.NetworkSettings.IPAddress}}", server).output
    get = f"timeout 5 wget -q -O - http://{address}/"
    wait_until(lambda: remapped.run(IMAGE, "sh", "-c", get, code=None).output == "hello", "serves")
    changed = remapped("exec", server, "sh", "-c", "ip link set eth0 mtu 1400; ip link show eth0")
    assert "mtu 1400" in changed.output


def test_exec_is_mapped_and_a_terminal_works(remapped: Docker) -> None:
    """``docker exec`` is in the user namespace; ``-t`` gives it a terminal of its own."""
    container = remapped.start(IMAGE, "sleep", "1000")
    script = "cat /proc/self/uid_map; test -t 1 && stat -c %u $(tty)"
    mapping, owner = remapped("exec", "-t", container, "sh", "-c", script).output.splitlines()
    assert mapping.split() == ["0", str(BASE), "65536"]
    assert owner == "0"


def test_userns_host_is_none_at_all(remapped: Docker) -> None:
    """``--userns=host`` leaves a container without one."""
    output = remapped.run("--userns", "host", IMAGE, "cat", "/proc/self/uid_map").output
    assert output.split() == ["0", "0", "4294967295"]
