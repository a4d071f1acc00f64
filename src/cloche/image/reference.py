"""Tells what the user named: a root file system, an OCI layout, an archive, a registry image."""

from __future__ import annotations

import enum
import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from cloche.base.errors import ConfigError, NotFoundError

# What a name in a registry may look like (distribution/reference, regexp.go), without the parts
# that skopeo checks again.
_REGISTRY_NAME = re.compile(
    r"(?:[\w.-]+(?::\d+)?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*(?::[\w][\w.-]{0,127})?"
    r"(?:@sha256:[0-9a-f]{64})?",
    re.ASCII,
)
_DAEMON_TRANSPORTS = ("docker-daemon:", "containers-storage:")


class Kind(enum.Enum):
    """The kinds of image sources."""

    ROOTFS = "root file system"
    LAYOUT = "OCI layout"
    ARCHIVE = "archive"
    REGISTRY = "registry image"
    DAEMON = "image of another engine"


class Source(NamedTuple):
    """What a reference means.

    *location* is an absolute path, or what skopeo gets; *tag* chooses among several images of a
    layout or archive, "" takes the only one. *text* is what the user wrote.
    """

    kind: Kind
    location: str
    tag: str
    text: str

    @property
    def path(self) -> Path:
        """The folder or file of a local source."""
        return Path(self.location)


def classify(reference: str) -> Source:
    """What *reference* names; raises NotFoundError or ConfigError saying what was looked for.

    An existing path wins over a registry name; what starts with "/", "./" or "../" is never
    taken for one. `PATH:TAG` chooses an image of a layout or archive.
    """
    if reference.startswith("docker://"):
        return Source(Kind.REGISTRY, reference, "", reference)
    if reference.startswith(_DAEMON_TRANSPORTS):
        return Source(Kind.DAEMON, reference, "", reference)
    path, tag = _split_existing(reference)
    if path is not None:
        return _classify_path(path, tag, reference)
    if reference.startswith(("/", "./", "../")) or reference in ("", ".", ".."):
        raise NotFoundError(
            f"image {reference!r}: no such file or folder",
            hint="name a root file system, an OCI layout, an archive, or an image of a registry",
        )
    if _REGISTRY_NAME.fullmatch(reference) is None:
        raise NotFoundError(
            f"image {reference!r}: neither a file, nor a folder, nor a name in a registry",
            hint="names look like docker.io/library/busybox:latest; check the path",
        )
    return Source(Kind.REGISTRY, f"docker://{reference}", "", reference)


def _split_existing(reference: str) -> tuple[Path | None, str]:
    """The longest existing path that *reference* starts with, and the tag behind it."""
    if reference and os.path.lexists(reference):
        return Path(reference), ""
    end = len(reference)
    while (end := reference.rfind(":", 0, end)) > 0:
        if os.path.exists(reference[:end]):
            return Path(reference[:end]), reference[end + 1 :]
    return None, ""


def _classify_path(path: Path, tag: str, reference: str) -> Source:
    location = str(path.absolute())
    if not path.is_dir():
        if not path.is_file():
            raise ConfigError(
                f"image {reference}: neither a regular file nor a folder",
                hint="name a root file system, an OCI layout or an archive",
            )
        return Source(Kind.ARCHIVE, location, tag, reference)
    names = set(os.listdir(path))
    if {"oci-layout", "index.json"} <= names:
        return Source(Kind.LAYOUT, location, tag, reference)
    _refuse_other_folders(reference, names)
    if tag:
        raise ConfigError(
            f"image {reference}: {path} is no OCI layout (no oci-layout and index.json in it), "
            f"so there is no tag {tag!r}",
            hint=f"name the folder alone to use it as root file system: {path}",
        )
    return Source(Kind.ROOTFS, str(path.resolve()), "", reference)


def _refuse_other_folders(reference: str, names: set[str]) -> None:
    if not names:
        raise ConfigError(
            f"image {reference}: the folder is empty; looked for an OCI layout (oci-layout, "
            "index.json) and for a root file system",
            hint="unpack one there, or name an archive or a registry image",
        )
    if {"config.json", "rootfs"} <= names:
        raise ConfigError(
            f"image {reference}: the folder is an OCI bundle (config.json and rootfs)",
            hint=f"cloche run --bundle {reference} ID, or cloche do {reference}/rootfs",
        )
    if "blobs" in names and names & {"oci-layout", "index.json"}:
        missing = ({"oci-layout", "index.json"} - names).pop()
        raise ConfigError(
            f"image {reference}: an OCI layout without {missing}", hint="make the layout anew"
        )


def cache_key(source: Source) -> str:
    """Names the content that *source* has now: hex digits, equal while it is unchanged.

    A layout is named by its index, an archive by path, size, mtime and inode, a registry image
    by its name alone.
    """
    parts = [source.kind.name, source.location, source.tag]
    if source.kind is Kind.LAYOUT:
        parts.append(hashlib.sha256((source.path / "index.json").read_bytes()).hexdigest())
    elif source.kind is Kind.ARCHIVE:
        status = source.path.stat()
        parts += [str(status.st_size), str(status.st_mtime_ns), str(status.st_ino)]
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()
