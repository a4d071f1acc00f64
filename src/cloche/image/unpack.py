"""Turns any image source into an erofs image file: skopeo, umoci and mkfs.erofs do the work.

skopeo copies the source into an OCI layout (and checks digests and the signature policy), umoci
unpacks the layers (ownership, whiteouts, xattrs, device nodes), mkfs.erofs packs the result.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from typing import TYPE_CHECKING

from cloche.base.errors import ClocheError, ConfigError
from cloche.base.files import write_atomically
from cloche.base.typed import Struct, field
from cloche.image import archive, tools
from cloche.image.accounts import read_accounts
from cloche.image.model import Image, ImageConfig
from cloche.image.reference import Kind, Source
from cloche.image.store import IMAGE_NAME, Manifest, Store, locked, workspace, write_manifest
from cloche.model.texts import from_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LAYOUT = "layout"  # skopeo's target inside the work folder
TAG = "image"
# mkfs.erofs keeps modification times up to this one (the year 2100), and takes it for its own
# time stamp, which otherwise would be now.
LATEST_TIME = 4102444800
# What Go's GOARCH, which image configurations use, calls the machines of uname(2), and what else
# their kernels run.
ARCHITECTURES = {
    "x86_64": ("amd64", "386"),
    "aarch64": ("arm64",),
    "riscv64": ("riscv64",),
    "ppc64le": ("ppc64le",),
    "s390x": ("s390x",),
}


class _Descriptor(Struct):
    digest: str
    size: int = 0
    media_type: str = field(default="", name="mediaType")


class _Index(Struct):
    manifests: list[_Descriptor]


class _Manifest(Struct):
    config: _Descriptor
    layers: list[_Descriptor]


class _Run(Struct, rename="pascal"):
    user: str | None = None
    exposed_ports: dict[str, object | None] | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str | None = None
    stop_signal: str | None = None


class _ImageFile(Struct):
    """The OCI image configuration (image-spec config.md), as far as it is used here."""

    architecture: str = ""
    os: str = ""
    config: _Run | None = None


def unpack(source: Source, images: Store, report: Callable[[str], None]) -> Image:
    """Bring *source* into the store; an image whose digest is there already is not unpacked again.

    Raises ClocheError; whatever happens, no half-made image stays.
    """
    if os.geteuid() != 0:
        raise ClocheError(
            f"image {source.text}: unpacking keeps the owners of files, which only root may set",
            hint="run as root, or name an unpacked root file system",
        )
    with workspace(images) as work:
        _copy(source, work, report)
        digest, manifest = _read_manifest(source, work)
        config = _read_config(source, work, manifest)
        with locked(images.locks / digest.removeprefix("sha256:"), report):
            found = images.load(digest, source.text)
            if found is None:
                _build(source, work, digest, manifest, config, report)
                _install(images, work, digest)
                found = images.load(digest, source.text)
    if found is None:
        raise ClocheError(f"image {source.text}: vanished after unpacking", hint="try again")
    return found


def _copy(source: Source, work: Path, report: Callable[[str], None]) -> None:
    """Have skopeo copy *source* into the layout LAYOUT, as TAG, for this machine's architecture."""
    origin = _origin(source, work, report)
    report(f"copying {source.text}")
    try:
        _skopeo(source, work, origin, LAYOUT)
    except tools.ToolError as error:
        raise _explain_copy(source, error) from error


def _origin(source: Source, work: Path, report: Callable[[str], None]) -> str:
    """*source* as skopeo, run in *work*, names it."""
    if source.kind is Kind.ARCHIVE:
        return archive.prepare(source, work, report)
    if source.kind is Kind.LAYOUT:
        (work / "source").symlink_to(source.path)  # skopeo cannot take a path with a colon
        return f"oci:source{f':{source.tag}' if source.tag else ''}"
    return source.location


def _skopeo(source: Source, work: Path, origin: str, target: str, *options: str) -> None:
    # The layers get compressed even where the source has them plain: with
    # --dest-oci-accept-uncompressed-layers skopeo 1.9 labels plain layers "+gzip", and umoci
    # cannot read them. Level 1 is for a file that lives for seconds.
    argv = ["skopeo", "copy", "--quiet", "--dest-compress-level", "1", *options]
    if (host := os.environ.get("DOCKER_HOST")) and source.kind is Kind.DAEMON:
        argv += ["--src-daemon-host", host]  # as docker does; skopeo does not ask for it itself
    argv += [origin, f"oci:{target}:{TAG}"]
    tools.run(f"image {source.text}", argv, work)


def _explain_copy(source: Source, error: tools.ToolError) -> ClocheError:
    text = error.output
    if "no image found in" in text:
        return _wrong_architecture(source, "other architectures only")
    if source.kind is Kind.LAYOUT and ("choose an image" in text or "no descriptor" in text):
        return _choose_tag(source)
    if source.kind in (Kind.LAYOUT, Kind.ARCHIVE) and not error.hint:
        return ConfigError(
            f"image {source.text}: the {source.kind.value} is damaged, or no image: {text}",
            hint="copy or save it again",
        )
    return error


def _choose_tag(source: Source) -> ConfigError:
    index = json.loads((source.path / "index.json").read_bytes())
    names = [
        str(entry["annotations"]["org.opencontainers.image.ref.name"])
        for entry in index["manifests"]
        if "org.opencontainers.image.ref.name" in (entry.get("annotations") or {})
    ]
    cause = f"the layout has no image {source.tag!r}" if source.tag else "several images"
    return ConfigError(
        f"image {source.text}: {cause}; it has {', '.join(names) or 'no names'}",
        hint=f"name one: {source.location}:{names[0]}" if names else "tag one with umoci or skopeo",
    )


def _wrong_architecture(source: Source, found: str) -> ConfigError:
    wanted = _architectures()[0]
    return ConfigError(
        f"image {source.text}: made for {found}, this machine is {wanted}",
        hint=f"build or pull the image for linux/{wanted}",
    )


def _architectures() -> tuple[str, ...]:
    machine = os.uname().machine
    return ARCHITECTURES.get(machine, (machine,))


def _blob(work: Path, descriptor: _Descriptor) -> bytes:
    return (work / LAYOUT / "blobs" / descriptor.digest.replace(":", "/", 1)).read_bytes()


def _read_manifest(source: Source, work: Path) -> tuple[str, _Manifest]:
    """The digest and the content of the manifest that skopeo has written."""
    try:
        index = from_json((work / LAYOUT / "index.json").read_bytes(), _Index)
        [descriptor] = index.manifests
        return descriptor.digest, from_json(_blob(work, descriptor), _Manifest)
    except (ValueError, ConfigError) as error:
        raise ConfigError(
            f"image {source.text}: manifest: {error}", hint="the image is broken: build it again"
        ) from error


def _read_config(source: Source, work: Path, manifest: _Manifest) -> ImageConfig:
    """The image's configuration; ConfigError where it is malformed or for another machine."""
    try:
        image: _ImageFile = from_json(_blob(work, manifest.config), _ImageFile)
    except ConfigError as error:
        raise ConfigError(
            f"image {source.text}: configuration: {error}",
            hint="the image is broken: build it again",
        ) from error
    if image.os not in ("", "linux") or image.architecture not in ("", *_architectures()):
        raise _wrong_architecture(source, f"{image.os}/{image.architecture}")
    run = image.config or _Run()
    return ImageConfig(
        entrypoint=tuple(run.entrypoint or ()),
        cmd=tuple(run.cmd or ()),
        env=tuple(run.env or ()),
        working_dir=run.working_dir or "",
        user=run.user or "",
        exposed_ports=tuple(run.exposed_ports or ()),
        stop_signal=run.stop_signal or "",
    )


def _build(
    source: Source,
    work: Path,
    digest: str,
    manifest: _Manifest,
    config: ImageConfig,
    report: Callable[[str], None],
) -> None:
    """Make work/image/{image.erofs,manifest.json} from the layers in LAYOUT."""
    step = f"image {source.text}"
    count, size = len(manifest.layers), sum(layer.size for layer in manifest.layers)
    report(f"unpacking {count} layer{'s' * (count != 1)}, {size / 1e6:.1f} MB compressed")
    layout = _readable_layout(source, work, manifest)
    tools.run(step, ["umoci", "raw", "unpack", "--image", f"{layout}:{TAG}", "rootfs"], work)
    report("packing the files into an erofs image")
    target = work / "image"
    target.mkdir(mode=0o700)
    erofs = target / IMAGE_NAME
    _make_erofs(step, work, digest)
    accounts = read_accounts(work / "rootfs")
    facts = Manifest(erofs.stat().st_size, time.time(), config, accounts)
    write_atomically(str(target / "manifest.json"), write_manifest(facts))


def _readable_layout(source: Source, work: Path, manifest: _Manifest) -> str:
    """A layout that umoci can read: umoci 0.4 knows no zstd."""
    if not any(layer.media_type.endswith("+zstd") for layer in manifest.layers):
        return LAYOUT
    options = ("--dest-compress-format", "gzip")
    _skopeo(source, work, f"oci:{LAYOUT}:{TAG}", "gzipped", *options)
    return "gzipped"


def _make_erofs(step: str, work: Path, digest: str) -> None:
    """Pack work/rootfs; the same files give the same bytes, and the UUID tells the digest.

    Not compressed: lz4 saves a third of the space, but each start then decompresses in the
    guest (docs/images.md has the numbers).
    """
    identity = str(uuid.UUID(hex=digest.removeprefix("sha256:")[:32]))
    argv = ["mkfs.erofs", "--quiet", "-U", identity, f"image/{IMAGE_NAME}", "rootfs"]
    tools.run(step, argv, work, environment={"SOURCE_DATE_EPOCH": str(LATEST_TIME)})
    fd = os.open(work / "image" / IMAGE_NAME, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)  # a power cut must not leave a whole name with half a file
    finally:
        os.close(fd)


def _install(images: Store, work: Path, digest: str) -> None:
    """Move work/image into place; a damaged image in its way is moved out first."""
    folder = images.folder(digest)
    if folder.exists():
        folder.rename(work / "damaged")
    (work / "image").rename(folder)
