"""What the rest of cloche knows about an image: plain values, nothing to import but these."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path


class ImageConfig(NamedTuple):
    """How the image wants to be run; empty values mean that it does not say.

    *exposed_ports* are spelled as in the image ("80/tcp"), *stop_signal* as well ("SIGTERM").
    """

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    exposed_ports: tuple[str, ...] = ()
    stop_signal: str = ""


class User(NamedTuple):
    """A line of the image's /etc/passwd, as far as user resolution needs it."""

    name: str
    uid: int
    gid: int


class Group(NamedTuple):
    """A line of the image's /etc/group."""

    name: str
    gid: int
    members: tuple[str, ...]


class Accounts(NamedTuple):
    """The image's users and groups, read once, when it was unpacked."""

    users: tuple[User, ...] = ()
    groups: tuple[Group, ...] = ()


class Image(NamedTuple):
    """An image that is ready to run: either an erofs image file or a folder holds its files.

    *digest* is "sha256:…" of the OCI manifest, or "" for a folder (*rootfs*), which is used as it
    is. *source* is what the user named.
    """

    digest: str
    erofs: Path | None
    rootfs: Path | None
    config: ImageConfig
    source: str
    accounts: Accounts = Accounts()


class StoredImage(NamedTuple):
    """One image in the store; *size* in bytes on disk, *created* in seconds since the epoch."""

    digest: str
    size: int
    created: float
    sources: tuple[str, ...]
