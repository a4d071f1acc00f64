"""``-v``: folders, files and named volumes, shared with the host at once in both directions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .client import Docker, host_path
from .image import IMAGE, USER_ID


def test_folder(docker: Docker, tmp_path: Path) -> None:
    """A folder's files are read and written as the host's."""
    host_path(tmp_path, "in", "from the host\n")
    script = "cat /v/in; echo inside > /v/out; mkdir /v/d; mv /v/in /v/d/moved"
    assert docker.run("-v", f"{tmp_path}:/v", IMAGE, "sh", "-c", script).output == "from the host"
    assert (tmp_path / "out").read_text() == "inside\n"
    assert (tmp_path / "d/moved").read_text() == "from the host\n"


def test_folder_read_only(docker: Docker, tmp_path: Path) -> None:
    """``:ro`` lets nothing be written."""
    host_path(tmp_path, "in", "kept\n")
    result = docker.run("-v", f"{tmp_path}:/v:ro", IMAGE, "sh", "-c", "cat /v/in; rm /v/in", code=1)
    assert result.output == "kept"
    assert "Read-only file system" in result.stderr
    assert (tmp_path / "in").exists()


def test_file(docker: Docker, tmp_path: Path) -> None:
    """One file can be mounted over one of the image's."""
    path = host_path(tmp_path, "motd", "mounted\n")
    script = "cat /etc/group; echo more >> /etc/group"
    assert docker.run("-v", f"{path}:/etc/group", IMAGE, "sh", "-c", script).output == "mounted"
    assert path.read_text() == "mounted\nmore\n"


def test_file_read_only(docker: Docker, tmp_path: Path) -> None:
    """A file that is mounted ``:ro`` cannot be written."""
    path = host_path(tmp_path, "file", "kept\n")
    script = "cat /f; echo more >> /f"
    result = docker.run("-v", f"{path}:/f:ro", IMAGE, "sh", "-c", script, code=1)
    assert (result.output, path.read_text()) == ("kept", "kept\n")


def test_named_volume(docker: Docker) -> None:
    """A named volume keeps its files from one container to the next."""
    volume = docker.volume()
    docker.run("-v", f"{volume}:/data", IMAGE, "sh", "-c", "echo kept > /data/x")
    assert docker.run("-v", f"{volume}:/data:ro", IMAGE, "cat", "/data/x").output == "kept"
    result = docker.run("-v", f"{volume}:/data:ro", IMAGE, "touch", "/data/y", code=1)
    assert "Read-only file system" in result.stderr


def test_named_volume_starts_with_image(docker: Docker) -> None:
    """A new named volume starts with what the image has in its place, owners included."""
    volume = docker.volume()
    script = "stat -c %u /home/app; cat /etc-copy/os-release"
    options = ("-v", f"{volume}:/home", "-v", f"{docker.volume()}:/etc-copy")
    output = docker.run(*options, IMAGE, "sh", "-c", script, code=None).output
    assert output == str(USER_ID)


def test_mount_option(docker: Docker, tmp_path: Path) -> None:
    """``--mount`` does the same in other words."""
    host_path(tmp_path, "in", "long form\n")
    option = f"type=bind,source={tmp_path},target=/v,readonly"
    assert docker.run("--mount", option, IMAGE, "cat", "/v/in").output == "long form"


def test_nested_mounts(docker: Docker, tmp_path: Path) -> None:
    """A mount below another mount lies over it, whatever their order on the command line."""
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    for folder in (outer, inner):
        folder.mkdir()
        host_path(folder, "name", f"{folder.name}\n")
    options = ("-v", f"{inner}:/v/in", "-v", f"{outer}:/v", "--tmpfs", "/v/in/tmp")
    script = "cat /v/name /v/in/name; mount | grep -c ' /v/in/tmp type tmpfs'"
    assert docker.run(*options, IMAGE, "sh", "-c", script).output == "outer\ninner\n1"


def test_seen_at_once(docker: Docker, tmp_path: Path) -> None:
    """What either side changes is seen by the other at once: new, changed and removed files."""
    name = docker.start("-v", f"{tmp_path}:/v", IMAGE, "sleep", "1000")
    assert docker("exec", name, "cat", "/v/x", code=None).code == 1
    path = host_path(tmp_path, "x", "one\n")
    assert docker("exec", name, "cat", "/v/x").output == "one"
    path.write_text("a longer second\n")
    assert docker("exec", name, "cat", "/v/x").output == "a longer second"
    docker.sh(name, "echo three > /v/x; echo y > /v/y")
    assert (path.read_text(), (tmp_path / "y").read_text()) == ("three\n", "y\n")
    path.unlink()
    assert docker("exec", name, "ls", "/v").output == "y"


def test_owners_and_modes(docker: Docker, tmp_path: Path) -> None:
    """Owners and modes are the same on both sides."""
    path = host_path(tmp_path, "x", "")
    os.chown(path, 12, 34)
    path.chmod(0o4750)
    script = "stat -c '%u %g %a' /v/x; touch /v/y; chmod 640 /v/y; ln -s y /v/z; chown 5:6 /v/y"
    output = docker.run("-v", f"{tmp_path}:/v", IMAGE, "sh", "-c", script).output
    made = (tmp_path / "y").stat()
    assert output == "12 34 4750"
    assert (made.st_uid, made.st_gid, made.st_mode & 0o7777) == (5, 6, 0o640)
    assert os.readlink(tmp_path / "z") == "y"


def test_other_user_is_refused(docker: Docker, tmp_path: Path) -> None:
    """Permissions hold inside: another user cannot read what is root's alone."""
    host_path(tmp_path, "secret", "x").chmod(0o600)
    options = ("-v", f"{tmp_path}:/v", "-u", "app")
    result = docker.run(*options, IMAGE, "cat", "/v/secret", code=1)
    assert "Permission denied" in result.stderr


def test_many_files(docker: Docker, tmp_path: Path) -> None:
    """A thousand files arrive whole."""
    for number in range(1000):
        (tmp_path / f"f{number}").write_bytes(b"%d\n" % number)
    script = "ls /v | wc -l; cat /v/f* | sort -n | md5sum; seq 0 999 | md5sum"
    count, read, expected = docker.run(
        "-v", f"{tmp_path}:/v", IMAGE, "sh", "-c", script
    ).output.splitlines()
    assert (count, read) == ("1000", expected)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param("echo new > n; echo old > o; mv n o; cat o; ls", "new\no", id="rename"),
        pytest.param("mkfifo p; (echo through > p) & cat p", "through", id="fifo"),
        pytest.param("echo x > a; ln a b; echo y >> b; cat a", "x\ny", id="hard-link"),
        pytest.param("echo x > a; exec 3< a; rm a; cat <&3", "x", id="removed-while-open"),
        pytest.param("echo 123456 > a; truncate -s 3 a; cat a", "123", id="truncate"),
        pytest.param("mkdir -p a/b/c; touch a/b/c/d; rm -r a; ls", "", id="remove-tree"),
        pytest.param("touch -d '2001-02-03 04:05:06' a; stat -c %Y a", "981173106", id="times"),
    ],
)
def test_file_operation(docker: Docker, tmp_path: Path, script: str, expected: str) -> None:
    """What programs do to files beyond reading and writing works in a mounted folder."""
    options = ("-v", f"{tmp_path}:/v", "-w", "/v")
    assert docker.run(*options, IMAGE, "sh", "-c", script).output == expected


def test_missing_source_of_mount(docker: Docker, tmp_path: Path) -> None:
    """``--mount`` of a source that does not exist is refused, and names it."""
    option = f"type=bind,source={tmp_path}/nosuch,target=/v"
    result = docker.run("--mount", option, IMAGE, "true", code=125)
    assert "nosuch" in result.stderr
