"""Sources that cannot be used: what is said, and that nothing half-made is left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cloche.base.errors import ClocheError, ConfigError
from cloche.image.store import list_images, resolve
from engine.patience import PATIENCE_SECONDS

from .support import (
    TOOL,
    Resolve,
    copy_of,
    leftovers,
    make,
    run,
    start,
    tmpfs,
    write_index,
)


def test_wrong_architecture(get: Resolve, layout: Path, tmp_path: Path, store: Path) -> None:
    folder = copy_of(layout, tmp_path)
    run("umoci", "config", "--image", f"{folder}:latest", "--architecture", "s390x")
    with pytest.raises(ConfigError, match="made for linux/s390x, this machine is") as caught:
        get(folder)
    assert "build or pull the image for linux/" in caught.value.hint
    assert list_images(store) == []
    assert leftovers(store) == []


def test_index_without_this_architecture(get: Resolve, layout: Path, tmp_path: Path) -> None:
    folder = copy_of(layout, tmp_path)
    [entry] = json.loads((folder / "index.json").read_text())["manifests"]
    entry.pop("annotations", None)
    entry["platform"] = {"os": "linux", "architecture": "s390x"}
    write_index(folder, {"schemaVersion": 2, "manifests": [entry]})
    with pytest.raises(ConfigError, match="made for other architectures only"):
        get(folder)


@pytest.mark.parametrize(
    ("size_kib", "moment"), [(256, "copying"), (2500, "unpacking"), (4200, "packing")]
)
def test_full_disk_leaves_nothing(
    archive: Path, tmp_path: Path, reports: list[str], size_kib: int, moment: str
) -> None:
    with tmpfs(tmp_path / "small", size_kib << 10) as small:
        with pytest.raises(ClocheError, match="no space left on the file system of") as caught:
            resolve(str(archive), small, reports.append)
        assert moment in reports[-1]
        assert str(small) in caught.value.message
        assert "free some space" in caught.value.hint
        assert leftovers(small) == []
        assert list_images(small) == []


def test_enough_room_is_enough(archive: Path, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", 9 << 20) as small:
        assert resolve(str(archive), small, lambda _: None).digest


def test_truncated_archives(get: Resolve, archive: Path, tmp_path: Path, store: Path) -> None:
    data = archive.read_bytes()
    (tmp_path / "short.tar").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match="the archive is damaged"):
        get(tmp_path / "short.tar")
    packed = subprocess.run(["gzip", "-c", archive], capture_output=True, check=True).stdout
    (tmp_path / "short.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ConfigError, match=r"the archive is damaged: .*unexpected end"):
        get(tmp_path / "short.gz")
    assert leftovers(store) == []


def test_flipped_bits_are_found(
    get: Resolve, layout: Path, archive: Path, tmp_path: Path, store: Path
) -> None:
    folder = copy_of(layout, tmp_path)
    biggest = max((folder / "blobs/sha256").iterdir(), key=lambda file: file.stat().st_size)
    data = bytearray(biggest.read_bytes())
    data[len(data) // 2] ^= 1
    biggest.write_bytes(data)
    with pytest.raises(ConfigError, match="the OCI layout is damaged, or no image"):
        get(folder)
    (tmp_path / "bad.tar").write_bytes(archive.read_bytes().replace(b'"rootfs"', b'"ro0tfs"'))
    with pytest.raises(ClocheError, match=r"bad\.tar"):
        get(tmp_path / "bad.tar")
    assert leftovers(store) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a tar file"),
        (b"#!/bin/sh\n" * 500, "not a tar file"),
        (b"\x1f\x8bgarbage", "the archive is damaged"),
        (b"\x28\xb5\x2f\xfdgarbage", "the archive is damaged"),
    ],
)
def test_files_that_are_no_archives(
    get: Resolve, tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ConfigError, match=says) as caught:
        get(tmp_path / "file")
    assert caught.value.hint


def test_tar_of_a_root_file_system_says_what_was_looked_for(get: Resolve, tmp_path: Path) -> None:
    run(TOOL, "rootfs", tmp_path / "rootfs")
    run("tar", "-cf", tmp_path / "x.tar", "-C", tmp_path / "rootfs", "bin", "etc")
    with pytest.raises(ConfigError, match=r"looked for manifest\.json .* found bin, etc"):
        get(tmp_path / "x.tar")


@pytest.mark.parametrize(
    "manifest", [b"", b"{}", b"[]", b"[1]", b'[{"RepoTags": 3}]', b'[{"Config": "/etc/passwd"}]']
)
def test_malformed_docker_manifest(get: Resolve, tmp_path: Path, manifest: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(manifest)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "manifest.json", "manifest.json")
    with pytest.raises(ConfigError, match=r"x\.tar: the archive is damaged"):
        get(tmp_path / "x.tar")


def test_policy_of_the_machine_is_obeyed(
    get: Resolve, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / ".config/containers/policy.json"
    policy.parent.mkdir(parents=True)
    policy.write_text('{"default": [{"type": "reject"}]}')
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ClocheError, match="rejected by policy") as caught:
        get(archive)
    assert "policy.json" in caught.value.hint


@pytest.mark.parametrize("moment", ["copying", "unpacking", "packing"])
def test_killed_while_unpacking(get: Resolve, archive: Path, store: Path, moment: str) -> None:
    process = start(archive, store, moment)
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == -9
    assert len(os.listdir(store / "images/work")) == 1
    assert list_images(store) == []
    assert get(archive).digest
    assert leftovers(store) == []


def test_interrupt_leaves_nothing(archive: Path, store: Path) -> None:
    def interrupt(line: str) -> None:
        if "packing" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve(str(archive), store, interrupt)
    assert leftovers(store) == []
    assert list_images(store) == []


def test_another_engine_that_does_not_run(
    get: Resolve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    with pytest.raises(ClocheError, match=f"docker-daemon:busybox:latest.*{tmp_path}") as caught:
        get("docker-daemon:busybox:latest")
    assert caught.value.hint == "is dockerd running?"


def test_unpacking_without_root(archive: Path) -> None:
    """What is unpacked would not keep its owners; root's store cannot even be read."""
    with TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        folder.chmod(0o755)
        file = shutil.copy(archive, folder / "x.tar")
        store = make(folder / "store")
        os.chown(store, 65534, 65534)
        errors = start(file, store, user=65534).communicate(timeout=PATIENCE_SECONDS)[1]
        assert "only root may set (run as root, or name an unpacked root file system)" in errors
        os.chown(store, 0, 0)
        store.chmod(0o700)
        errors = start(file, store, user=65534).communicate(timeout=PATIENCE_SECONDS)[1]
        assert "Permission denied (run as root)" in errors
