"""The cpio archive, read back with other people's cpio."""

from __future__ import annotations

import random
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.guest.initramfs import Entry, build_initramfs, directory, file, pack
from cloche.guest.modules import Module


def cpio(*flags: str, archive: bytes, cwd: Path | None = None) -> str:
    """Run whichever cpio this machine has."""
    for command in (["cpio"], ["bsdcpio"], ["busybox", "cpio"]):
        if shutil.which(command[0]):
            argv = [*command, *flags]
            done = subprocess.run(argv, input=archive, capture_output=True, check=True, cwd=cwd)
            return done.stdout.decode()
    pytest.skip("no cpio here: neither cpio, bsdcpio nor busybox is installed")


def guest_archive(tmp_path: Path) -> bytes:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "virtio-rng.ko").write_bytes(b"rng code")
    (tmp_path / "virtio.ko").write_bytes(b"virtio code, odd length")
    modules = [Module("virtio", "virtio.ko", "x"), Module("virtio_rng", "a/virtio-rng.ko", "y")]
    return build_initramfs(b"#!agent", tmp_path, modules)


def test_names_modes_and_order_as_another_cpio_sees_them(tmp_path: Path) -> None:
    listing = cpio("-t", "-v", archive=guest_archive(tmp_path)).splitlines()
    found = {line.partition(" -> ")[0].split()[-1]: line.split()[0] for line in listing}
    assert found == {
        "dev": "drwxr-xr-x",
        "dev/console": "crw-------",
        "device-filter": "-rw-r--r--",
        "init": "-rwxr-xr-x",
        "modules": "drwxr-xr-x",
        "modules/load": "-rw-r--r--",
        "modules/virtio.ko": "-rw-r--r--",
        "modules/virtio_rng.ko": "-rw-r--r--",
        "proc": "drwxr-xr-x",
        "run": "drwxr-xr-x",
        "sbin": "drwxr-xr-x",
        "sbin/modprobe": "lrwxrwxrwx",
        "sys": "drwxr-xr-x",
        "tmp": "drwxrwxrwt",
    }


def test_modprobe_is_the_agent(tmp_path: Path) -> None:
    """In the kernel's own root: what /sbin/modprobe leads to is looked for from there."""
    data = {name: data for name, _, data in parse(guest_archive(tmp_path))}
    assert data["sbin/modprobe"] == b"/init"


def test_contents_survive_another_cpio(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    archive = guest_archive(tmp_path)
    # By name: the device node takes root, the rest does not.
    names = ["init", "modules/load", "modules/virtio.ko", "modules/virtio_rng.ko"]
    cpio("-i", "-d", *names, archive=archive, cwd=out)
    assert (out / "init").read_bytes() == b"#!agent"
    assert (out / "modules" / "load").read_text() == (
        "/modules/virtio.ko\n/modules/virtio_rng.ko\n"
    )
    assert (out / "modules" / "virtio.ko").read_bytes() == b"virtio code, odd length"
    assert (out / "modules" / "virtio_rng.ko").read_bytes() == b"rng code"


def test_the_same_entries_give_the_same_bytes() -> None:
    entries = [
        directory("a"),
        file("a/b", b"1"),
        file("a-b", b"2"),
        directory("a/c"),
        file("z", b""),
    ]
    archive = pack(entries)
    for seed in range(5):
        random.Random(seed).shuffle(entries)
        assert pack(entries) == archive


def parse(archive: bytes) -> list[tuple[str, list[int], bytes]]:
    """A newc reader written from the format's description."""
    at = 0
    found: list[tuple[str, list[int], bytes]] = []
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + i * 8 : at + 14 + i * 8], 16) for i in range(13)]
        name = archive[at + 110 : at + 110 + fields[11] - 1].decode()
        start = (at + 110 + fields[11] + 3) & ~3
        data = archive[start : start + fields[6]]
        if name == "TRAILER!!!":
            return found
        found.append((name, fields, data))
        at = (start + fields[6] + 3) & ~3


def test_the_console_is_character_device_5_1(tmp_path: Path) -> None:
    fields = next(fields for name, fields, _ in parse(guest_archive(tmp_path)) if "/con" in name)
    assert (stat.S_ISCHR(fields[1]), fields[9:11]) == (True, [5, 1])


def test_no_owner_no_time_no_host_leaks_in(tmp_path: Path) -> None:
    for number, (_, fields, _) in enumerate(parse(guest_archive(tmp_path)), start=1):
        inode, _, uid, gid, _, mtime, *_ = fields
        assert (inode, uid, gid, mtime) == (number, 0, 0, 0)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z-]{1,9}(/[a-z]{1,5}){0,2}", fullmatch=True), st.binary(max_size=70)
    )
)
def test_any_files_come_back(files: dict[str, bytes]) -> None:
    archive = pack(file(path, data) for path, data in files.items())
    assert len(archive) % 512 == 0
    found = parse(archive)
    assert {name: data for name, _, data in found} == files
    assert all(stat.S_ISREG(fields[1]) for _, fields, _ in found)


def test_a_folder_comes_before_what_is_in_it() -> None:
    names = ["dev", "dev/x", "dev-a", "dev.b"]
    found = [name for name, _, _ in parse(pack(Entry(name, stat.S_IFREG) for name in names))]
    assert found.index("dev") + 1 == found.index("dev/x")
