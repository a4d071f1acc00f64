"""Image archives: told apart by their content, decompressed where they need it."""

from __future__ import annotations

import json
import tarfile
from typing import TYPE_CHECKING, Any

from cloche.base.errors import ConfigError
from cloche.image import tools

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cloche.image.reference import Source

_COMPRESSIONS = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
)
_INDEX_LIMIT = 16 << 20  # bytes of manifest.json that are read; a real one has a few thousand
PLAIN_NAME = "archive.tar"


def prepare(source: Source, work: Path, report: Callable[[str], None]) -> str:
    """Put the archive, decompressed, into *work*; returns its name for skopeo, run in *work*.

    A link is enough where nothing is compressed: skopeo cannot take a path with a colon.
    Raises ConfigError for what is no image archive, ClocheError for a damaged one.
    """
    plain = work / PLAIN_NAME
    program = _compression(source.path)
    if program:
        report(f"decompressing {source.path} ({program})")
        try:
            tools.decompress(f"image {source.text}", program, source.path, plain)
        except tools.ToolError as error:
            raise _damaged(source, error.output) from error
    else:
        plain.symlink_to(source.path)
    members = _members(source, plain)
    if "manifest.json" in members:  # also where it is both, as Docker ≥ 25 writes it
        return f"docker-archive:{PLAIN_NAME}{_docker_choice(source, plain, members)}"
    if {"oci-layout", "index.json"} <= set(members):
        return f"oci-archive:{PLAIN_NAME}{f':{source.tag}' if source.tag else ''}"
    held = ", ".join(sorted({name.split("/")[0] for name in members})[:6]) or "nothing"
    raise ConfigError(
        f"image {source.text}: a tar file, but no image: looked for manifest.json (docker "
        f"archive) and for oci-layout with index.json (OCI archive), found {held}",
        hint="unpack a root file system into a folder and name that: tar -C DIR -xf FILE",
    )


def _compression(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(8)
    return next((program for magic, program in _COMPRESSIONS if start.startswith(magic)), "")


def _damaged(source: Source, cause: str) -> ConfigError:
    return ConfigError(
        f"image {source.text}: the archive is damaged: {cause}",
        hint="copy or save it again, then compare the sizes",
    )


def _members(source: Source, plain: Path) -> dict[str, tarfile.TarInfo]:
    """What the tar file holds, by name."""
    try:
        with tarfile.open(plain, "r:") as archive:
            return {member.name.removeprefix("./"): member for member in archive}
    except tarfile.ReadError as error:
        if _looks_like_tar(plain):
            raise _damaged(source, str(error)) from error
        raise ConfigError(
            f"image {source.text}: no image archive: not a tar file (gzip, zstd, xz, bzip2 or "
            "uncompressed)",
            hint="make one with: docker save -o image.tar NAME",
        ) from error


def _looks_like_tar(plain: Path) -> bool:
    with plain.open("rb") as file:
        return file.read(512)[257:262] == b"ustar"


def _docker_choice(source: Source, plain: Path, members: dict[str, tarfile.TarInfo]) -> str:
    """What chooses the image in a docker archive: ":@INDEX", or "" where there is but one."""
    try:
        with tarfile.open(plain, "r:") as archive:
            file = archive.extractfile(members["manifest.json"])
            entries: Any = json.loads(file.read(_INDEX_LIMIT) if file else b"")
        tags = [list(entry.get("RepoTags") or []) for entry in entries]
    except (ValueError, KeyError, AttributeError, TypeError, tarfile.ReadError) as error:
        raise _damaged(source, f"manifest.json: {error}") from error
    wanted = source.tag
    if not wanted:
        if len(tags) > 1:
            raise _choose(source, tags, "holds several images")
        return ""
    for index, names in enumerate(tags):
        if any(
            wanted in (name, name.rpartition(":")[0], name.rpartition(":")[2]) for name in names
        ):
            return f":@{index}"
    raise _choose(source, tags, f"holds no image {wanted!r}")


def _choose(source: Source, tags: list[list[str]], cause: str) -> ConfigError:
    known = [str(name) for names in tags for name in names]
    return ConfigError(
        f"image {source.text}: the archive {cause}; it has {', '.join(known) or 'no names'}",
        hint=f"name one: {source.location}:{known[0]}" if known else "save it with one name",
    )
