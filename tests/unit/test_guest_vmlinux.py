"""The kernel inside a bzImage, whichever way it is compressed."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import struct
import subprocess
from collections.abc import Callable

import pytest

from cloche.base.errors import ClocheError
from cloche.guest.vmlinux import bzimage_payload, extract_vmlinux, has_pvh_entry, kernel_release

from .guest_samples import PVH_NOTE, RELEASE, bzimage, elf_kernel, note

KERNEL = elf_kernel()
# What the kernel's build appends to all payloads but gzip's.
SIZE = struct.pack("<I", len(KERNEL))


def through(*argv: str) -> Callable[[bytes], bytes]:
    """A compressor that is an outside program."""

    def compress(data: bytes) -> bytes:
        if shutil.which(argv[0]) is None:
            pytest.skip(f"{argv[0]} is not installed")
        return subprocess.run(argv, input=data, capture_output=True, check=True).stdout + SIZE

    return compress


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "gzip": gzip.compress,
    "bzip2": lambda data: bz2.compress(data) + SIZE,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE) + SIZE,
    "xz": lambda data: (
        lzma.compress(
            data,
            lzma.FORMAT_XZ,
            check=lzma.CHECK_CRC32,
            filters=[{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6}],
        )
        + SIZE
    ),
    "zstd": through("zstd", "-q", "-c"),
    "lz4": through("lz4", "-l", "-q", "-c"),
}


@pytest.mark.parametrize("method", COMPRESSORS)
def test_every_compression_gives_the_same_kernel(method: str) -> None:
    image = bzimage(COMPRESSORS[method](KERNEL))
    assert extract_vmlinux(image, "vmlinuz") == KERNEL
    assert kernel_release(image, "vmlinuz") == RELEASE


def test_an_elf_kernel_is_taken_as_it_is() -> None:
    assert extract_vmlinux(KERNEL, "vmlinux") == KERNEL
    assert kernel_release(KERNEL, "vmlinux") == RELEASE


def test_the_payload_ends_where_the_header_says() -> None:
    assert bzimage_payload(bzimage(b"payload"), "vmlinuz") == b"payload"


@pytest.mark.parametrize(
    ("image", "cause"),
    [
        (b"#!/bin/sh\n", "neither an ELF kernel nor a bzImage"),
        (bytes(4096), "neither an ELF kernel nor a bzImage"),
        (bzimage(b"\x1f\x8b" + b"x" * 99), "does not decompress"),
        (bzimage(lzma.compress(KERNEL))[:3000], "cut short"),
        (bzimage(b"\x89LZO rest"), "89 4c 5a 4f"),
        (bzimage(gzip.compress(b"no kernel")), "no ELF file"),
        (bzimage(gzip.compress(KERNEL), version=0x0207), "0x0207 is too old"),
        (elf_kernel(notes=note(b"Xen", 6, b"linux\0")), "no PVH entry point"),
        (elf_kernel(notes=note(b"GNU", 18, b"12345678")), "no PVH entry point"),
    ],
)
def test_what_is_no_bootable_kernel_is_refused_with_the_cause(image: bytes, cause: str) -> None:
    with pytest.raises(ClocheError, match=r"^vmlinuz: ") as caught:
        extract_vmlinux(image, "vmlinuz")
    assert cause in caught.value.message


def test_the_pvh_note_is_found_behind_others() -> None:
    others = note(b"GNU", 3, bytes(20)) + note(b"Linux", 257, b"odd") + note(b"", 1, b"")
    assert has_pvh_entry(elf_kernel(others + PVH_NOTE))
    assert not has_pvh_entry(elf_kernel(others))


@pytest.mark.parametrize("length", [0, 4, 63, 64, 100, 119, 125])
def test_a_truncated_elf_file_has_no_entry_and_raises_nothing(length: int) -> None:
    assert not has_pvh_entry(KERNEL[:length])


def test_a_file_without_a_release_is_refused() -> None:
    with pytest.raises(ClocheError, match="which kernel release"):
        kernel_release(b"\x7fELF" + bytes(1000), "vmlinux")
