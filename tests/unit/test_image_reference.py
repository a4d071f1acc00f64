"""What a reference means, and what the error says when it means nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloche.base.errors import ClocheError
from cloche.image.reference import Kind, cache_key, classify


def layout(folder: Path) -> Path:
    folder.mkdir()
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "busybox",
        "busybox:1.36",
        "docker.io/library/busybox",
        "localhost:5000/a/b_c--d:v1.0",
        "quay.io/x/y@sha256:" + "a" * 64,
        "docker://Any-Thing",
    ],
)
def test_names_of_a_registry(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = classify(name)
    assert source.kind is Kind.REGISTRY
    assert source.location == "docker://" + name.removeprefix("docker://")


def test_an_existing_folder_wins_over_a_registry_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "busybox/bin").mkdir(parents=True)
    assert classify("busybox") == (Kind.ROOTFS, str(tmp_path / "busybox"), "", "busybox")


def test_other_engines() -> None:
    assert classify("docker-daemon:busybox:latest").kind is Kind.DAEMON


def test_layout_with_and_without_tag(tmp_path: Path) -> None:
    folder = layout(tmp_path / "a:b")
    assert classify(str(folder)) == (Kind.LAYOUT, str(folder), "", str(folder))
    assert classify(f"{folder}:v1") == (Kind.LAYOUT, str(folder), "v1", f"{folder}:v1")


def test_archive_with_a_docker_name_as_tag(tmp_path: Path) -> None:
    file = tmp_path / "x.tar"
    file.touch()
    source = classify(f"{file}:docker.io/library/busybox:latest")
    assert source[:3] == (Kind.ARCHIVE, str(file), "docker.io/library/busybox:latest")


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("", "no such file or folder"),
        ("/does/not/exist", "no such file or folder"),
        ("./x:latest", "no such file or folder"),
        ("Upper/Case", "neither a file, nor a folder, nor a name in a registry"),
        ("a b", "neither a file"),
        ("x@sha256:123", "neither a file"),
        ("-option", "neither a file"),
        ("/dev/null", "neither a regular file nor a folder"),
    ],
)
def test_what_names_nothing(
    reference: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ClocheError, match=says) as caught:
        classify(reference)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], r"empty; looked for an OCI layout \(oci-layout, index.json\) and for a root file"),
        (["config.json", "rootfs/"], "an OCI bundle"),
        (["blobs/", "index.json"], "an OCI layout without oci-layout"),
        (["blobs/", "oci-layout"], "an OCI layout without index.json"),
    ],
)
def test_folders_that_are_no_root_file_system(tmp_path: Path, names: list[str], says: str) -> None:
    for name in names:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    with pytest.raises(ClocheError, match=says) as caught:
        classify(str(tmp_path))
    assert caught.value.hint


def test_a_root_file_system_has_no_tags(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    with pytest.raises(ClocheError, match=r"is no OCI layout .* so there is no tag 'v1'"):
        classify(f"{tmp_path}:v1")


def test_key_of_an_archive_changes_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.tar"
    file.write_bytes(b"abc")
    key = cache_key(classify(str(file)))
    assert cache_key(classify(str(file))) == key
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    later = cache_key(classify(str(file)))
    assert later != key
    file.write_bytes(b"abcd")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert cache_key(classify(str(file))) != later


def test_key_of_a_layout_follows_its_index_and_tag(tmp_path: Path) -> None:
    folder = layout(tmp_path / "layout")
    key = cache_key(classify(str(folder)))
    assert cache_key(classify(f"{folder}:v1")) != key
    os.utime(folder / "index.json", (1, 1))
    assert cache_key(classify(str(folder))) == key
    (folder / "index.json").write_text("{}")
    assert cache_key(classify(str(folder))) != key
