"""The uncompressed kernel inside a bzImage, and what an image says about itself.

QEMU boots an ELF vmlinux through its PVH entry point: no boot loader, no decompression inside
the guest (which costs most of a second under TCG).
"""

from __future__ import annotations

import bz2
import lzma
import re
import struct
import zlib
from collections.abc import Iterator

from cloche.base.errors import ClocheError
from cloche.guest.tools import run_tool

_ELF = b"\x7fELF"
_PT_NOTE = 4
_XEN_ELFNOTE_PHYS32_ENTRY = 18  # linux/include/xen/interface/elfnote.h: the PVH entry point
# The decompressed size that the kernel's build appends to every payload but gzip's.
_SIZE_TRAILER = 4


def extract_vmlinux(image: bytes, name: str) -> bytes:
    """The ELF kernel in *image*, a bzImage or already an ELF file; *name* is for messages.

    Raises ClocheError when it is neither, is compressed in an unknown way, or has no PVH entry.
    """
    vmlinux = image if image.startswith(_ELF) else _decompress(bzimage_payload(image, name), name)
    if not vmlinux.startswith(_ELF):
        raise ClocheError(f"{name}: the compressed kernel in it is no ELF file")
    if not has_pvh_entry(vmlinux):
        raise ClocheError(
            f"{name}: the kernel has no PVH entry point",
            hint="it must be an x86-64 kernel built with CONFIG_PVH=y",
        )
    return vmlinux


def bzimage_payload(image: bytes, name: str) -> bytes:
    """The compressed kernel in a bzImage (linux/Documentation/arch/x86/boot.rst)."""
    if len(image) < 0x250 or image[0x202:0x206] != b"HdrS":
        raise ClocheError(f"{name}: neither an ELF kernel nor a bzImage")
    (version,) = struct.unpack_from("<H", image, 0x206)
    if version < 0x0208:  # older than payload_offset, Linux 2.6.26
        raise ClocheError(f"{name}: boot protocol {version:#06x} is too old")
    offset, length = struct.unpack_from("<II", image, 0x248)
    setup_sectors = image[0x1F1] or 4
    start = (setup_sectors + 1) * 512 + offset
    if start + length > len(image):
        raise ClocheError(f"{name}: the file is cut short")
    return image[start : start + length]


def _decompress(payload: bytes, name: str) -> bytes:
    try:
        if payload.startswith(b"\xfd7zXZ\x00"):
            return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)
        if payload.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(wbits=31).decompress(payload)
        if payload.startswith(b"BZh"):
            return bz2.BZ2Decompressor().decompress(payload)
        if payload.startswith(b"\x5d\x00\x00"):
            return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(payload)
    except (lzma.LZMAError, zlib.error, OSError) as error:
        raise ClocheError(f"{name}: the kernel in it does not decompress: {error}") from error
    body = payload[:-_SIZE_TRAILER]
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return run_tool(["zstd", "-dcq"], f"to decompress {name}", data=body)
    if payload.startswith(b"\x02\x21\x4c\x18"):
        return run_tool(["lz4", "-dcq"], f"to decompress {name}", data=body)
    if payload.startswith(_ELF):
        return payload
    raise ClocheError(
        f"{name}: compressed in an unknown way (starts with {payload[:4].hex(' ')})",
        hint="gzip, xz, lzma, bzip2, zstd and lz4 are understood",
    )


def has_pvh_entry(vmlinux: bytes) -> bool:
    """Whether the ELF file carries the note from which QEMU takes its PVH entry point."""
    return any(
        owner == b"Xen" and kind == _XEN_ELFNOTE_PHYS32_ENTRY for owner, kind in _notes(vmlinux)
    )


def _notes(elf: bytes) -> Iterator[tuple[bytes, int]]:
    """Owner and type of every note of a 64-bit little-endian ELF file."""
    if len(elf) < 64 or elf[4:6] != b"\x02\x01":
        return
    (table,) = struct.unpack_from("<Q", elf, 32)
    entry_size, count = struct.unpack_from("<HH", elf, 54)
    for index in range(count):
        header = elf[table + index * entry_size :][:56]
        if len(header) < 56 or struct.unpack_from("<I", header)[0] != _PT_NOTE:
            continue
        (start,) = struct.unpack_from("<Q", header, 8)
        (size,) = struct.unpack_from("<Q", header, 32)
        segment = elf[start : start + size]
        at = 0
        while at + 12 <= len(segment):
            name_size, data_size, kind = struct.unpack_from("<III", segment, at)
            yield segment[at + 12 : at + 12 + name_size].rstrip(b"\0"), kind
            at += 12 + _padded(name_size) + _padded(data_size)


def _padded(size: int) -> int:
    return (size + 3) & ~3


def kernel_release(image: bytes, name: str) -> str:
    """What `uname -r` will say under this bzImage or ELF kernel."""
    if image[0x202:0x206] == b"HdrS":
        start = struct.unpack_from("<H", image, 0x20E)[0] + 0x200
        text = image[start : start + 256].split(b"\0")[0]
    else:
        found = re.search(rb"Linux version ([^\s\0]+) ", image)
        text = found[1] if found else b""
    release = text.decode(errors="replace").split(" ")[0]
    if not release:
        raise ClocheError(f"{name}: does not say which kernel release it is")
    return release
