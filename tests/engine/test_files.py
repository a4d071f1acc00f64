"""``cp``, ``commit``, ``diff``, ``export``: docker reads and writes a container's files itself."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

from .client import Docker, host_path
from .image import IMAGE


def test_cp_into_running(docker: Docker, tmp_path: Path) -> None:
    """A file that is copied in is there at once, though it was looked for before and missing."""
    name = docker.start(IMAGE, "sleep", "1000")
    docker("exec", name, "cat", "/tmp/x", code=1)
    path = host_path(tmp_path, "x", "first\n")
    docker("cp", str(path), f"{name}:/tmp/x")
    assert docker("exec", name, "cat", "/tmp/x").output == "first"
    path.write_text("a longer second\n")
    docker("cp", str(path), f"{name}:/tmp/x")
    assert docker("exec", name, "cat", "/tmp/x").output == "a longer second"


def test_cp_folder_into_running(docker: Docker, tmp_path: Path) -> None:
    """A folder is copied with what is in it: modes, links, a file of some size."""
    name = docker.start(IMAGE, "sleep", "1000")
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    host_path(folder / "sub", "script", "#!/bin/sh\necho ran\n").chmod(0o755)
    (folder / "big").write_bytes(os.urandom(3_000_000))
    (folder / "link").symlink_to("sub/script")
    docker("cp", str(folder), f"{name}:/opt")
    digest = hashlib.sha256((folder / "big").read_bytes()).hexdigest()
    output = docker.sh(name, "/opt/link; sha256sum < /opt/big")
    assert output.split()[:2] == ["ran", digest]


def test_cp_stdin(docker: Docker) -> None:
    """``cp -`` unpacks a tar archive, owners included."""
    name = docker.start(IMAGE, "sleep", "1000")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        info = tarfile.TarInfo("from-tar")
        info.size, info.uid, info.gid, info.mode = 4, 12, 34, 0o640
        tar.addfile(info, io.BytesIO(b"tar\n"))
    docker("cp", "-a", "-", f"{name}:/tmp", data=archive.getvalue())
    assert (
        docker.sh(name, "cat /tmp/from-tar; stat -c '%u %g %a' /tmp/from-tar") == "tar\n12 34 640"
    )


def test_cp_from_running(docker: Docker, tmp_path: Path) -> None:
    """What a running program has just written is in the copy."""
    name = docker.start(IMAGE, "sleep", "1000")
    for text in ("one", "a longer second"):
        docker.sh(name, f"mkdir -p /out/sub; echo {text} > /out/sub/x")
        docker("cp", f"{name}:/out/sub/x", str(tmp_path / "x"))
        assert (tmp_path / "x").read_text() == f"{text}\n"
    docker("cp", f"{name}:/out", str(tmp_path / "folder"))
    assert (tmp_path / "folder/sub/x").read_text() == "a longer second\n"


def test_cp_large_file_from_running(docker: Docker, tmp_path: Path) -> None:
    """A file of some size, just written, is copied whole."""
    name = docker.start(IMAGE, "sleep", "1000")
    digest = docker.sh(name, "head -c 20000000 /dev/urandom > /big; sha256sum < /big").split()[0]
    docker("cp", f"{name}:/big", str(tmp_path / "big"))
    assert hashlib.sha256((tmp_path / "big").read_bytes()).hexdigest() == digest


def test_cp_with_volume(docker: Docker, tmp_path: Path) -> None:
    """``cp`` into a place where a folder is mounted writes to the mounted folder."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    name = docker.start("-v", f"{folder}:/v", IMAGE, "sleep", "1000")
    docker("cp", str(host_path(tmp_path, "x", "in volume\n")), f"{name}:/v/x")
    assert (folder / "x").read_text() == "in volume\n"
    assert docker("exec", name, "cat", "/v/x").output == "in volume"


def test_cp_stopped(docker: Docker, tmp_path: Path) -> None:
    """``cp`` works both ways before a container runs and after it has ended."""
    script = "cat /in && echo result > /out"
    docker("create", *docker.new_container_args(), IMAGE, "sh", "-c", script)
    docker("cp", str(host_path(tmp_path, "in", "input\n")), f"{docker.last}:/in")
    assert docker("start", "-a", docker.last).output == "input"
    docker("cp", f"{docker.last}:/out", str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "result\n"


def test_cp_missing(docker: Docker, idle: str, tmp_path: Path) -> None:
    """A file that is not there is named."""
    assert "nosuch" in docker("cp", f"{idle}:/nosuch", str(tmp_path), code=1).stderr


def test_commit(docker: Docker) -> None:
    """``commit`` of a running container makes an image of the files as they are."""
    name = docker.start(IMAGE, "sleep", "1000")
    docker.sh(name, "echo changed > /changed; rm /etc/os-release")
    image = f"committed-{name}"
    docker("commit", "--change", 'CMD ["cat", "/changed"]', name, image)
    try:
        assert docker.run(image).output == "changed"
        docker.run(image, "test", "-e", "/etc/os-release", code=1)
        assert docker.sh(name, "echo running") == "running"
    finally:
        docker("image", "rm", "-f", image)


def test_diff(docker: Docker) -> None:
    """``diff`` names what was added, changed and deleted, and nothing else."""
    name = docker.start(IMAGE, "sleep", "1000")
    docker.sh(name, "mkdir /new; echo x > /new/x; echo y >> /etc/group; rm /etc/os-release")
    lines = docker("diff", name).output.splitlines()
    assert sorted(lines) == ["A /new", "A /new/x", "C /etc", "C /etc/group", "D /etc/os-release"]


def test_export(docker: Docker) -> None:
    """``export`` gives the files of a running container as a tar archive."""
    name = docker.start(IMAGE, "sleep", "1000")
    docker.sh(name, "echo exported > /x")
    with tarfile.open(fileobj=io.BytesIO(docker("export", name).stdout)) as tar:
        file = tar.extractfile("x")
        assert file is not None
        assert file.read() == b"exported\n"


def test_files_survive_restart(docker: Docker) -> None:
    """What a container has written is there when it is started again."""
    script = "cat /count 2>/dev/null; echo x >> /count"
    docker(*docker.run_args(IMAGE, "sh", "-c", script))
    assert docker("start", "-a", docker.last).output == "x"
    assert docker("start", "-a", docker.last).output == "x\nx"
