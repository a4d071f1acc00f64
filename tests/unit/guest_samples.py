"""Small kernels, module trees and packages for the guest's tests: real formats, little content."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

from cloche.guest.modules import WANTED

RELEASE = "6.1.0-56-amd64"
CONFIG = """\
CONFIG_BLK_DEV_INITRD=y
CONFIG_CGROUPS=y
CONFIG_CGROUP_BPF=y
CONFIG_DEVTMPFS=y
CONFIG_NAMESPACES=y
CONFIG_SECCOMP_FILTER=y
CONFIG_SERIAL_8250_CONSOLE=y
CONFIG_TMPFS=y
CONFIG_UNIX=y
CONFIG_EXT4_FS=m
"""


def note(owner: bytes, kind: int, data: bytes) -> bytes:
    """An ELF note."""
    name = owner + b"\0"
    parts = [struct.pack("<III", len(name), len(data), kind)]
    parts += [part + bytes(-len(part) % 4) for part in (name, data)]
    return b"".join(parts)


PVH_NOTE = note(b"Xen", 18, struct.pack("<Q", 0x1000850))


def elf_kernel(notes: bytes = PVH_NOTE, release: str = RELEASE) -> bytes:
    """A 64-bit ELF file with one PT_NOTE segment and a kernel's version banner."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0x1000000, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(notes), len(notes), 4)
    banner = f"Linux version {release} (builder@example) #1 SMP\n".encode() + b"\0"
    return header + segment + notes + banner + bytes(range(256)) * 64


def bzimage(payload: bytes, release: str = RELEASE, version: int = 0x020F) -> bytes:
    """A bzImage: one boot sector, four setup sectors, then the compressed kernel at +64."""
    image = bytearray(5 * 512)
    image[0x1F1] = 4
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    struct.pack_into("<H", image, 0x20E, 0x300 - 0x200)
    struct.pack_into("<II", image, 0x248, 64, len(payload))
    text = f"{release} (builder@example) #1 SMP".encode() + b"\0"
    image[0x300 : 0x300 + len(text)] = text
    return bytes(image) + bytes(64) + payload + b"what follows the payload"


def module_tree(folder: Path, extra: Mapping[str, str] | None = None) -> Path:
    """A module folder that has every wanted module; *extra* are further lines of modules.dep."""
    lines = {f"kernel/{want.name}.ko": "kernel/virtio_ring.ko" for want in WANTED}
    lines["kernel/virtio_ring.ko"] = ""
    lines |= extra or {}
    for path in lines:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(f"code of {path}".encode())
    (folder / "modules.dep").write_text("".join(f"{a}: {b}\n" for a, b in lines.items()))
    (folder / "modules.builtin").write_text("kernel/net/unix/unix.ko\n")
    (folder / "kernel" / "unneeded.ko").write_bytes(b"not to be kept")
    return folder


def unpacked_kernel(folder: Path, release: str = RELEASE, **origin: object) -> Path:
    """A folder laid out as cloche's own unpacked kernels."""
    module_tree(folder / "modules")
    (folder / "vmlinux").write_bytes(elf_kernel(release=release))
    record = {"format": 1, "release": release, "source": "a test", "reason": "a test", **origin}
    (folder / "origin.json").write_text(json.dumps(record))
    return folder


def kernel_deb(folder: Path, payload: bytes, version: str = "6.1.192-2") -> Path:
    """A Debian kernel package, built by dpkg-deb, that ships modules.dep (as few do)."""
    root = folder / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        f"Package: linux-image-{RELEASE}\nVersion: {version}\nArchitecture: amd64\n"
        "Maintainer: nobody <nobody@example.org>\nDescription: a kernel for tests\n"
    )
    (root / "boot").mkdir()
    (root / "boot" / f"vmlinuz-{RELEASE}").write_bytes(bzimage(payload))
    (root / "boot" / f"config-{RELEASE}").write_text(CONFIG)
    module_tree(root / "lib" / "modules" / RELEASE)
    deb = folder / "kernel.deb"
    subprocess.run(
        ["dpkg-deb", "-Znone", "--root-owner-group", "-b", root, deb],
        check=True,
        capture_output=True,
    )
    return deb
