"""Running the few outside programs that preparing a guest needs."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from cloche.base.errors import ClocheError

_APT_HINT = "on a host without apt, name a kernel image with `kernel` in /etc/cloche/config.toml"
# What to do about a program that may be absent on a small installation.
_HINTS = {
    "apt-get": _APT_HINT,
    "apt-cache": _APT_HINT,
    "dpkg-deb": _APT_HINT,
    "depmod": "try: apt-get install kmod",
}


def find_tool(name: str, purpose: str) -> str:
    """The path of program *name*; ClocheError with what to install when it is missing."""
    # An administrator's PATH may lack the sbin folders where depmod lives.
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    if found := shutil.which(name, path=path):
        return found
    hint = _HINTS.get(name, f"try: apt-get install {name}")
    raise ClocheError(f"{name}: not installed, but needed {purpose}", hint=hint)


def run_tool(
    argv: Sequence[str | Path],
    purpose: str,
    *,
    data: bytes | None = None,
    cwd: Path | None = None,
) -> bytes:
    """Run a program to its end with *data* on stdin and return its stdout.

    *purpose* completes "needed …" and "… failed" (e.g. "to unpack the kernel package").
    Raises ClocheError with the program's own last words.
    """
    program = find_tool(str(argv[0]), purpose)
    done = subprocess.run(
        [program, *map(str, argv[1:])],
        input=data,
        stdin=subprocess.DEVNULL if data is None else None,
        capture_output=True,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        check=False,
    )
    if done.returncode != 0:
        raise tool_failure(str(argv[0]), purpose, done.returncode, done.stderr)
    return done.stdout


def tool_failure(name: str, purpose: str, status: int, stderr: bytes) -> ClocheError:
    """The error for a program that ended with *status*, quoting the end of its stderr."""
    if b"No space left on device" in stderr:
        return no_space_error(f"{name}: failed {purpose}")
    lines = [line for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    words = "; ".join(lines[-3:]) or f"exit status {status}, no message"
    return ClocheError(f"{name}: failed {purpose}: {words}")


def no_space_error(what: str) -> ClocheError:
    """The error for a full disk, where *what* could not be done or written."""
    return ClocheError(
        f"{what}: no space left on the device",
        hint="unpacking a kernel package takes about 600 MB for a moment, its guest 100 MB; free "
        "some space, or move it with data_root in /etc/cloche/config.toml",
    )


@contextlib.contextmanager
def explained_os_errors(step: str) -> Iterator[None]:
    """Turn a full disk or a missing permission below *step* into a ClocheError with a hint."""
    try:
        yield
    except OSError as error:
        path = os.fsdecode(error.filename) if error.filename else "cloche's data"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_space_error(f"{path}: {step}") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ClocheError(
                f"{path}: {step}: {error.strerror}",
                hint="run it as root, or name a writable folder for cloche's data",
            ) from error
        raise ClocheError(f"{path}: {step}: {error.strerror or error}") from error


@contextlib.contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Fill a folder beside *target*, which takes *target*'s place when the block succeeds.

    A reader sees the old folder or the whole new one. After a failure nothing is left behind.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield work
        work.chmod(0o755)
        _replace_directory(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _replace_directory(new: Path, target: Path) -> None:
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    try:
        # rename(2) replaces an empty folder only, so a full one has to step aside first.
        with contextlib.suppress(FileNotFoundError):
            target.rename(old)
        new.rename(target)
    finally:
        shutil.rmtree(old, ignore_errors=True)
