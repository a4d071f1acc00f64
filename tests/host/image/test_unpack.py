"""Every kind of source, unpacked by real skopeo, umoci and mkfs.erofs, mounted and looked at.

Needs root, and a kernel that mounts erofs through a loop device.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from cloche.base.errors import ClocheError, ConfigError
from cloche.image.bundle import DoOptions, bundle_config
from cloche.image.store import resolve

from .support import (
    TOOL,
    Resolve,
    add_layer,
    copy_of,
    leftovers,
    load,
    make,
    mounted,
    run,
    two_images,
    write_index,
)


def test_docker_archive_becomes_an_image_that_runs(
    get: Resolve, archive: Path, tmp_path: Path, store: Path
) -> None:
    image = get(archive)
    assert image.config.cmd == ("sh",)
    assert [user.name for user in image.accounts.users] == ["root", "daemon", "nobody"]
    with mounted(image, tmp_path / "mnt") as root:
        names = run("chroot", root, "/bin/sh", "-c", "ls /bin && cat /etc/os-release")
    assert "busybox" in names.split()
    assert "ID=busybox" in names
    assert leftovers(store) == []
    config = bundle_config(image, DoOptions())
    assert config["root"]["path"] == str(image.erofs)
    assert config["process"]["args"] == ["sh"]


def test_layout_by_folder_and_by_tag(get: Resolve, layout: Path, reports: list[str]) -> None:
    image = get(layout)
    assert image.digest == run("skopeo", "inspect", "-f", "{{.Digest}}", f"oci:{layout}").strip()
    assert any("unpacking 1 layer," in line for line in reports)
    reports.clear()
    assert get(f"{layout}:latest")[:4] == image[:4]
    assert not any("unpacking" in line for line in reports)  # same digest: nothing made twice


@pytest.mark.parametrize("program", ["gzip", "zstd", "xz", "bzip2"])
@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_compressed_archives_are_told_by_content(
    get: Resolve, layout: Path, tmp_path: Path, program: str, kind: str
) -> None:
    # The name says nothing about the content, and has what skopeo cannot take.
    file = tmp_path / "odd name:with colon"
    run("skopeo", "copy", f"oci:{layout}:latest", f"{kind}:{tmp_path}/plain.tar")
    with file.open("wb") as output:
        subprocess.run([program, "-1", "-c", tmp_path / "plain.tar"], stdout=output, check=True)
    image = get(file)
    assert image.config.cmd == ("sh",)
    assert image.accounts.users[0] == ("root", 0, 0)


def test_a_stored_image_needs_no_tool(
    get: Resolve,
    archive: Path,
    layout: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reports: list[str],
) -> None:
    image = get(archive)
    reports.clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert get(archive) == image
    assert reports == []
    with pytest.raises(ClocheError, match="skopeo is not installed") as caught:
        get(layout)
    assert caught.value.hint == "apt-get install skopeo"


def test_a_changed_archive_is_read_again(get: Resolve, layout: Path, tmp_path: Path) -> None:
    changing = copy_of(layout, tmp_path)
    file = tmp_path / "x.tar"
    run("skopeo", "copy", f"oci:{changing}:latest", f"docker-archive:{file}")
    first = get(file)
    run("umoci", "config", "--image", f"{changing}:latest", "--config.cmd", "date")
    file.unlink()
    run("skopeo", "copy", f"oci:{changing}:latest", f"docker-archive:{file}")
    second = get(file)
    assert second.config.cmd == ("date",)
    assert second.digest != first.digest


def test_root_file_system_is_used_as_it_is(get: Resolve, tmp_path: Path, store: Path) -> None:
    run(TOOL, "rootfs", tmp_path / "rootfs")
    image = get(tmp_path / "rootfs")
    assert (image.digest, image.erofs, image.rootfs) == ("", None, tmp_path / "rootfs")
    assert image.config.cmd == ("/bin/sh",)
    assert image.accounts.groups[2] == ("tty", 5, ())
    assert not store.exists()


def test_files_keep_all_that_layers_say(get: Resolve, layout: Path, tmp_path: Path) -> None:
    changing, extra = copy_of(layout, tmp_path), tmp_path / "extra"
    (extra / "data").mkdir(parents=True)
    (extra / "data/setuid").write_bytes(b"x" * 5000)
    os.chown(extra / "data/setuid", 1234, 70000)
    (extra / "data/setuid").chmod(0o4755)
    os.link(extra / "data/setuid", extra / "data/again")
    os.mknod(extra / "data/null", 0o20666, os.makedev(1, 3))
    os.mkfifo(extra / "data/fifo")
    (extra / "data/ünïcode").symlink_to("/nowhere")
    os.setxattr(extra / "data/again", "user.colour", b"blue")
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(extra / "data/again", "security.capability", capability)
    os.utime(extra / "data/setuid", (981173106, 981173106))
    add_layer(changing, extra)
    run("umoci", "insert", "--image", f"{changing}:latest", "--whiteout", "/etc/os-release")
    with mounted(get(changing), tmp_path / "mnt") as root:
        status = (root / "data/setuid").stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1234, 70000, 0o4755)
        assert (status.st_nlink, status.st_mtime) == (2, 981173106)
        assert (root / "data/null").stat().st_rdev == os.makedev(1, 3)
        assert (root / "data/fifo").is_fifo()
        assert (root / "data/ünïcode").readlink() == Path("/nowhere")
        assert os.getxattr(root / "data/setuid", "user.colour") == b"blue"
        assert os.getxattr(root / "data/setuid", "security.capability") == capability
        assert not (root / "etc/os-release").exists()
        assert not list((root / "etc").glob(".wh.*"))
        assert (root / "etc/passwd").exists()


def test_same_image_gives_the_same_bytes(layout: Path, tmp_path: Path) -> None:
    first = resolve(str(layout), tmp_path / "a", lambda _: None)
    second = resolve(str(layout), tmp_path / "b", lambda _: None)
    assert first.erofs is not None
    assert second.erofs is not None
    assert first.erofs.read_bytes() == second.erofs.read_bytes()


def test_links_in_layers_do_not_lead_out(get: Resolve, layout: Path, tmp_path: Path) -> None:
    """A layer that makes a link to a host folder, and one that writes through it."""
    victim = tmp_path / "victim"
    victim.mkdir()
    changing = copy_of(layout, tmp_path)
    for number, name in enumerate(("first", "second")):
        extra = tmp_path / name
        if number == 0:
            extra.mkdir()
            (extra / "trap").symlink_to(victim)
            (extra / "etc").mkdir()
            (extra / "etc/passwd").symlink_to("/proc/self/root/etc/passwd")
        else:
            (extra / "trap").mkdir(parents=True)
            (extra / "trap/file").write_text("written")
        add_layer(changing, extra)
    image = get(changing)
    assert list(victim.iterdir()) == []
    assert image.accounts.users == ()
    assert image.accounts.groups[0].name == "root"


def test_zstd_layers(get: Resolve, layout: Path, tmp_path: Path) -> None:
    target = f"oci:{tmp_path}/zstd:latest"
    run("skopeo", "copy", "--dest-compress-format", "zstd", f"oci:{layout}:latest", target)
    index = json.loads((tmp_path / "zstd/index.json").read_text())
    digest = index["manifests"][0]["digest"]
    blob = tmp_path / "zstd/blobs" / digest.replace(":", "/")
    assert "+zstd" in blob.read_text()
    image = get(tmp_path / "zstd")
    assert image.digest == digest
    with mounted(image, tmp_path / "mnt") as root:
        assert (root / "bin/busybox").exists()


def test_one_of_several_images_in_a_layout(get: Resolve, layout: Path, tmp_path: Path) -> None:
    folder = two_images(layout, tmp_path)
    assert get(f"{folder}:date").config.cmd == ("date",)
    assert get(f"{folder}:latest").config.cmd == ("sh",)
    with pytest.raises(ConfigError, match="several images; it has latest, date"):
        get(folder)
    with pytest.raises(ConfigError, match="has no image 'other'; it has latest, date"):
        get(f"{folder}:other")


def test_one_of_several_images_in_an_archive(get: Resolve, layout: Path, tmp_path: Path) -> None:
    folder = two_images(layout, tmp_path)
    file = tmp_path / "several.tar"
    for tag in ("latest", "date"):
        name = f"{tmp_path}/{tag}.tar:example.org/x:{tag}"
        run("skopeo", "copy", f"oci:{folder}:{tag}", f"docker-archive:{name}")
        run("tar", "-xf", f"{tmp_path}/{tag}.tar", "-C", make(tmp_path / "all"))
        (tmp_path / "all/manifest.json").rename(tmp_path / f"{tag}.json")
    entries = [*load(tmp_path / "latest.json"), *load(tmp_path / "date.json")]
    (tmp_path / "all/manifest.json").write_text(json.dumps(entries))
    run("tar", "-cf", file, "-C", tmp_path / "all", *os.listdir(tmp_path / "all"))
    assert get(f"{file}:example.org/x:date").config.cmd == ("date",)
    assert get(f"{file}:latest").config.cmd == ("sh",)
    with pytest.raises(ConfigError, match=r"holds several images; it has example\.org/x:latest"):
        get(file)
    with pytest.raises(ConfigError, match="holds no image 'other'"):
        get(f"{file}:other")


def test_index_with_several_architectures(get: Resolve, layout: Path, tmp_path: Path) -> None:
    folder = copy_of(layout, tmp_path)
    [entry] = json.loads((folder / "index.json").read_text())["manifests"]
    entry.pop("annotations", None)
    ours = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    other = entry | {"platform": {"os": "linux", "architecture": "s390x"}}
    mine = entry | {"platform": {"os": "linux", "architecture": ours}}
    write_index(folder, {"schemaVersion": 2, "manifests": [other, mine]})
    assert get(folder).digest == entry["digest"]


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_archives_packed_by_hand(get: Resolve, layout: Path, tmp_path: Path, kind: str) -> None:
    """tar -C DIR . puts "./" before every name, and folders in between."""
    run("skopeo", "copy", f"oci:{layout}:latest", f"{kind}:{tmp_path}/plain.tar")
    run("tar", "-xf", tmp_path / "plain.tar", "-C", make(tmp_path / "content"))
    run("tar", "-cf", tmp_path / "again.tar", "-C", tmp_path / "content", ".")
    assert get(tmp_path / "again.tar").config.cmd == ("sh",)
