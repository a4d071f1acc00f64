"""Runs skopeo, umoci and mkfs.erofs, and words their failures.

Imported where an image is unpacked only: subprocess costs 10 ms that a stored image saves.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
from typing import TYPE_CHECKING

from cloche.base.errors import ClocheError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PACKAGES = {
    "skopeo": "skopeo",
    "umoci": "umoci",
    "mkfs.erofs": "erofs-utils",
    "gzip": "gzip",
    "zstd": "zstd",
    "xz": "xz-utils",
    "bzip2": "bzip2",
}
_FULL = ("no space left on device", "[error 28]", "disk quota exceeded")
_LOGGED_MESSAGE = re.compile(r'msg="((?:[^"\\]|\\.)*)"')
_UNREACHABLE = "the registry cannot be reached from here; an archive works without network"
_LOGIN = "check the name; a private image needs `skopeo login` first"
_NO_TLS = "is it a registry without TLS? say so in /etc/containers/registries.conf"
# What a message of skopeo contains, and what to try then; the first that fits is taken.
_HINTS = (
    ("rejected by policy", "the signature policy forbids it: /etc/containers/policy.json"),
    ("policy.json", "the policy comes with: apt-get install golang-github-containers-common"),
    ("x509", "the registry's certificate is not trusted by this machine"),
    ("not look like a TLS handshake", _NO_TLS),
    ("HTTP response to HTTPS", _NO_TLS),
    ("unauthorized", _LOGIN),
    ("denied", _LOGIN),
    ("authentication required", _LOGIN),
    ("manifest unknown", "the registry has no such tag"),
    ("no such host", _UNREACHABLE),
    ("dial tcp", _UNREACHABLE),
    ("i/o timeout", _UNREACHABLE),
    ("pinging container registry", _UNREACHABLE),
    ("docker daemon", "is dockerd running?"),
)


class NoSpaceError(ClocheError):
    """The store's file system, or the user's quota, is full."""


class ToolError(ClocheError):
    """A program failed; *output* is the message it ended with."""

    def __init__(self, message: str, *, hint: str, output: str) -> None:
        super().__init__(message, hint=hint)
        self.output = output


def no_space(step: str, images: Path) -> NoSpaceError:
    """The error for a full disk; *images* is the store's folder."""
    return NoSpaceError(
        f"{step}: no space left on the file system of {images}",
        hint="free some space there (unpacking needs about three times the image's size); "
        "images in that folder may be deleted at any time",
    )


def explain_os_error(step: str, images: Path, error: OSError) -> ClocheError:
    """*error*, met while doing *step* in the store's folder, as a message for the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return no_space(step, images)
    hint = "run as root" if error.errno in (errno.EPERM, errno.EACCES) else ""
    return ClocheError(f"{step}: {error.filename or images}: {error.strerror or error}", hint=hint)


def run(
    step: str, argv: Sequence[str], folder: Path, *, environment: dict[str, str] | None = None
) -> str:
    """Run *argv* in the work folder *folder* and return its output; Ctrl-C ends it.

    Temporary files go into *folder* as well. *step* words the errors: ClocheError for a missing
    program, NoSpaceError, ToolError.
    """
    try:
        done = subprocess.run(
            argv,
            cwd=folder,
            env={**os.environ, "TMPDIR": str(folder), **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            close_fds=False,  # the one inheritable descriptor is the lock on its work folder
        )
    except FileNotFoundError:
        raise missing(step, argv[0]) from None
    if done.returncode != 0:
        raise _failure(step, argv[0], folder, done)
    return done.stdout.decode(errors="replace")


def decompress(step: str, program: str, source: Path, target: Path) -> None:
    """Write the decompressed *source* to *target*; raises as `run` does."""
    try:
        with source.open("rb") as compressed, target.open("xb") as plain:
            done = subprocess.run(
                [program, "-dc"],
                stdin=compressed,
                stdout=plain,
                stderr=subprocess.PIPE,
                check=False,
            )
    except FileNotFoundError as error:
        if error.filename != program:
            raise
        raise missing(step, program) from None
    if done.returncode != 0:
        raise _failure(step, program, target.parent, done)


def missing(step: str, program: str) -> ClocheError:
    """The error for a program that is not installed."""
    return ClocheError(
        f"{step}: {program} is not installed", hint=f"apt-get install {PACKAGES[program]}"
    )


def _failure(
    step: str, program: str, folder: Path, done: subprocess.CompletedProcess[bytes]
) -> ClocheError:
    text = done.stderr.decode(errors="replace").strip()
    if any(sign in text.lower() for sign in _FULL):
        return no_space(step, folder.parents[1])  # images/work/<this one>, which will be removed
    if done.returncode < 0:
        text = f"killed by signal {-done.returncode}"
    cause = _last_message(text) or f"exit status {done.returncode}"
    hint = next((hint for sign, hint in _HINTS if sign in text), "")
    return ToolError(f"{step}: {program}: {cause}", hint=hint, output=cause)


def _last_message(text: str) -> str:
    """The last message of a tool's log, without time and level."""
    logged = _LOGGED_MESSAGE.findall(text)
    if logged:
        return str(logged[-1]).replace('\\"', '"').replace("\\\\", "\\").replace("\\n", " ")
    lines = [line.strip(" \t•⨯") for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
