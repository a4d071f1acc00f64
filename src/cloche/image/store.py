"""The image store of `cloche do`: resolve, list, remove, prune.

    images/<sha256 of the manifest>/   image.erofs, manifest.json; made beside, renamed into place
    images/sources/<key>.json          which digest an archive, layout or name had when last read
    images/locks/<name>                flock while an image is unpacked
    images/work/<random>/              an unpacking under way; locked, so leftovers can be told

A stored image is found without importing anything that unpacks.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from cloche.base.errors import ClocheError, NotFoundError, StateError
from cloche.base.files import read_text, write_atomically
from cloche.image.accounts import read_accounts
from cloche.image.model import Accounts, Group, Image, ImageConfig, StoredImage, User
from cloche.image.reference import Kind, Source, cache_key, classify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FORMAT = 1
DIGEST = re.compile(r"[0-9a-f]{64}")
IMAGE_NAME = "image.erofs"
RECORD_FIELDS = {"digest", "source", "kind", "location", "tag"}
# A folder says nothing about what to run; every root file system worth a shell has this one.
ROOTFS_CMD = ("/bin/sh",)


class Store:
    """The folders below *base*/images."""

    def __init__(self, base: Path) -> None:
        self.images = base / "images"
        self.sources = self.images / "sources"
        self.locks = self.images / "locks"
        self.work = self.images / "work"

    def prepare(self) -> None:
        """Make the folders; only root may enter: images hold other people's setuid programs."""
        for folder in (self.images, self.sources, self.locks, self.work):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def folder(self, digest: str) -> Path:
        """Where the image with *digest* is kept."""
        return self.images / digest.removeprefix("sha256:")

    def manifest(self, digest: str) -> Manifest | None:
        """What is known about the stored image, or None where it is missing or not whole."""
        folder = self.folder(digest)
        try:
            manifest = read_manifest(read_text(str(folder / "manifest.json")) or "")
            whole = (folder / IMAGE_NAME).stat().st_size == manifest.size
        except (ValueError, KeyError, TypeError, FileNotFoundError):
            return None
        return manifest if whole else None

    def load(self, digest: str, source: str) -> Image | None:
        """The stored image, or None where it is missing or not whole."""
        manifest = self.manifest(digest)
        if manifest is None:
            return None
        erofs = self.folder(digest) / IMAGE_NAME
        return Image(digest, erofs, None, manifest.config, source, manifest.accounts)

    def find(self, key: str, source: str) -> Image | None:
        """The stored image that the source with *key* had when it was last read."""
        record = self._record(key)
        return self.load(record["digest"], source) if record else None

    def remember(self, key: str, source: Source, digest: str) -> None:
        """Note that the source with *key* is the image *digest*."""
        record = {
            "digest": digest,
            "source": source.text,
            "kind": source.kind.name,
            "location": source.location,
            "tag": source.tag,
        }
        write_atomically(str(self.sources / f"{key}.json"), json.dumps(record).encode())

    def _record(self, key: str) -> dict[str, str] | None:
        text = read_text(str(self.sources / f"{key}.json"))
        try:
            record = json.loads(text) if text else None
        except ValueError:
            return None
        if not isinstance(record, dict) or set(record) != RECORD_FIELDS:
            return None
        return record if all(isinstance(value, str) for value in record.values()) else None

    def records(self) -> dict[str, dict[str, str]]:
        """Every remembered source by its key."""
        keys = [name.removesuffix(".json") for name in _names(self.sources)]
        return {key: record for key in keys if (record := self._record(key))}

    def digests(self) -> list[str]:
        """The digests of all stored images, sorted."""
        return [f"sha256:{name}" for name in _names(self.images) if DIGEST.fullmatch(name)]


class Manifest(NamedTuple):
    """What manifest.json beside an image holds; *size* is that of the image file in bytes."""

    size: int
    created: float
    config: ImageConfig
    accounts: Accounts


def write_manifest(manifest: Manifest) -> bytes:
    """manifest.json as bytes."""
    value = {
        "format": FORMAT,
        "size": manifest.size,
        "created": manifest.created,
        "config": manifest.config._asdict(),
        "users": manifest.accounts.users,
        "groups": manifest.accounts.groups,
    }
    return json.dumps(value, indent=1).encode()


def read_manifest(text: str) -> Manifest:
    """The reverse of `write_manifest`; ValueError, KeyError or TypeError for anything else."""
    value = json.loads(text)
    if value["format"] != FORMAT:
        raise ValueError(f"format {value['format']}")
    plain: dict[str, Any] = {
        key: tuple(item) if isinstance(item, list) else item
        for key, item in value["config"].items()
    }
    users = tuple(User(*fields) for fields in value["users"])
    groups = tuple(Group(name, gid, tuple(members)) for name, gid, members in value["groups"])
    accounts = Accounts(users, groups)
    return Manifest(value["size"], value["created"], ImageConfig(**plain), accounts)


def resolve(
    reference: str, store: Path, report: Callable[[str], None], *, refresh: bool = False
) -> Image:
    """The image that *reference* names, unpacked below *store*/images unless it is there already.

    *report* gets one line per long step. *refresh* asks the registry again and reads an archive
    again. Raises ClocheError (what cannot be used, reached, unpacked); nothing is left behind
    then.
    """
    images = Store(store)
    try:
        return _resolve(classify(reference), images, report, refresh)
    except OSError as error:
        from cloche.image.tools import explain_os_error

        raise explain_os_error(f"image {reference}", images.images, error) from error


def _resolve(source: Source, images: Store, report: Callable[[str], None], refresh: bool) -> Image:
    if source.kind is Kind.ROOTFS:
        config, accounts = ImageConfig(cmd=ROOTFS_CMD), read_accounts(source.path)
        return Image("", None, source.path, config, source.text, accounts)
    key = cache_key(source)
    # The images of another engine change under their name, without a sign that can be seen here.
    fresh = refresh or source.kind is Kind.DAEMON
    if not fresh and (found := images.find(key, source.text)):
        return found
    images.prepare()
    with locked(images.locks / key, report):
        if not fresh and (found := images.find(key, source.text)):
            return found
        return _unpack(source, images, key, report)


def _unpack(source: Source, images: Store, key: str, report: Callable[[str], None]) -> Image:
    from cloche.image.unpack import unpack  # 30 ms of imports that a stored image saves

    sweep(images)
    image = unpack(source, images, report)
    images.remember(key, source, image.digest)
    return image


@contextlib.contextmanager
def locked(path: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Hold an exclusive lock on the file *path*, which exists only while someone holds it."""
    fd = _lock_file(path, report)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def _lock_file(path: Path, report: Callable[[str], None]) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another process that unpacks the same image")
            fcntl.flock(fd, fcntl.LOCK_EX)
        if _is_still(path, fd):
            return fd
        os.close(fd)  # its last holder removed the file: lock the one that is there now


def _is_still(path: Path, fd: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), path.stat())
    return False


@contextlib.contextmanager
def workspace(images: Store) -> Iterator[Path]:
    """A locked folder that is gone afterwards, whatever happens; `sweep` removes it if we die."""
    while True:
        folder = images.work / _random_name()
        folder.mkdir(mode=0o700)
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            # The tools inherit the lock, so that what outlives us is not swept from under them.
            os.set_inheritable(fd, True)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _is_still(folder, fd):
                break
            os.close(fd)
    try:
        yield folder
    finally:
        _remove_tree(folder)
        os.close(fd)


def sweep(images: Store) -> None:
    """Remove what processes that died while unpacking have left."""
    for name in _names(images.work):
        with contextlib.suppress(OSError), _exclusive(images.work / name):
            _remove_tree(images.work / name)
    for name in _names(images.locks):
        with contextlib.suppress(OSError), _exclusive(images.locks / name):
            (images.locks / name).unlink()  # who opened it meanwhile will see that (_is_still)


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Lock a folder or file, BlockingIOError if someone else has it."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def hold(image: Image) -> int:
    """A descriptor that keeps *image* from being removed until it is closed everywhere.

    It may be inherited. Raises NotFoundError if the image went in between: resolve it again.
    """
    folder = image.rootfs or (image.erofs.parent if image.erofs else None)
    if folder is None:
        raise ValueError("an image has either a folder or an erofs file")
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _gone(image) from None
    if image.erofs:
        fcntl.flock(fd, fcntl.LOCK_SH)
        if not _is_still(folder, fd):
            os.close(fd)
            raise _gone(image)
    return fd


def _gone(image: Image) -> NotFoundError:
    return NotFoundError(f"image {image.source}: removed meanwhile", hint="start it again")


def list_images(store: Path) -> list[StoredImage]:
    """Every whole image in the store, newest first, with the sources it is known by."""
    images = Store(store)
    names: dict[str, list[str]] = {}
    for record in images.records().values():
        names.setdefault(record["digest"], []).append(record["source"])
    found = []
    for digest in images.digests():
        if manifest := images.manifest(digest):
            sources = tuple(sorted(set(names.get(digest, []))))
            found.append(StoredImage(digest, manifest.size, manifest.created, sources))
    return sorted(found, key=lambda entry: entry.created, reverse=True)


def remove_image(store: Path, name: str) -> str:
    """Remove the image that a digest, its unique start or a source names; returns its digest.

    Raises NotFoundError, ClocheError for an ambiguous name, StateError while `hold` is in force.
    """
    images = Store(store)
    digest = _digest_of(images, name)
    if not _discard(images, digest):
        raise StateError(f"image {name}: in use by a container", hint="end the container first")
    return digest


def _digest_of(images: Store, name: str) -> str:
    named = {record["digest"] for record in images.records().values() if record["source"] == name}
    start = "sha256:" + name.removeprefix("sha256:")
    found = named or {digest for digest in images.digests() if name and digest.startswith(start)}
    if not found:
        raise NotFoundError(
            f"image {name!r}: not in the store",
            hint=f"{len(images.digests())} images are kept in {images.images}",
        )
    if len(found) > 1:
        raise ClocheError(
            f"image {name!r}: fits {len(found)} stored images", hint="give more of the digest"
        )
    return found.pop()


def _discard(images: Store, digest: str) -> bool:
    """Remove a stored image and what points to it; False while it is held."""
    folder = images.folder(digest)
    try:
        with _exclusive(folder):
            doomed = images.work / _random_name()
            folder.rename(doomed)  # gone at once for everyone else, and for good if we die now
            _remove_tree(doomed)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass  # someone else removed it
    for key, record in images.records().items():
        if record["digest"] == digest:
            (images.sources / f"{key}.json").unlink(missing_ok=True)
    return True


def prune(store: Path, *, everything: bool = False) -> list[str]:
    """Remove leftovers, and images whose archive or layout is gone or has changed since.

    *everything* removes all that no container holds. Returns the digests removed.
    """
    images = Store(store)
    sweep(images)
    for key, record in images.records().items():
        if not _is_current(key, record):
            (images.sources / f"{key}.json").unlink(missing_ok=True)
    wanted = {record["digest"] for record in images.records().values()}
    doomed = [digest for digest in images.digests() if everything or digest not in wanted]
    return [digest for digest in doomed if _discard(images, digest)]


def _is_current(key: str, record: dict[str, str]) -> bool:
    """Whether the source with *key* would still be found by it."""
    if record["kind"] not in (Kind.LAYOUT.name, Kind.ARCHIVE.name):
        return True
    source = Source(Kind[record["kind"]], record["location"], record["tag"], record["source"])
    try:
        return cache_key(source) == key
    except OSError:
        return False


def _random_name() -> str:
    return os.urandom(8).hex()


def _remove_tree(folder: Path) -> None:
    from shutil import rmtree  # 5 ms of imports (compressors) that finding an image saves

    rmtree(folder, ignore_errors=True)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
