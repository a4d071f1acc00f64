"""The distribution's kernel package: looked up, downloaded and unpacked, never installed."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cloche.base.errors import ClocheError, NotFoundError
from cloche.guest.report import Report
from cloche.guest.tools import find_tool, run_tool, tool_failure

# The package that depends on Debian's current kernel. Not the cloud flavour: it has no 9p and no
# virtio-mmio.
META_PACKAGE = "linux-image-amd64"
SOURCE_META_PACKAGE = "linux-source"
_PREFIX = "linux-image-"
_SOURCE_PREFIX = "linux-source-"


class KernelPackage(NamedTuple):
    """A concrete kernel package, as apt knows it."""

    name: str
    version: str

    @property
    def release(self) -> str:
        """What `uname -r` says under its kernel."""
        return self.name.removeprefix(_PREFIX).removesuffix("-unsigned")


def candidate_package(meta: str = META_PACKAGE) -> KernelPackage:
    """The kernel package that apt would install today; asks apt's lists, not the network.

    Raises ClocheError when there is no apt, or its lists do not know *meta*.
    """
    return _candidate(meta, _PREFIX)


def candidate_source(meta: str = SOURCE_META_PACKAGE) -> KernelPackage:
    """The package with the source of the distribution's current kernel; otherwise the same."""
    return _candidate(meta, _SOURCE_PREFIX)


def _candidate(meta: str, prefix: str) -> KernelPackage:
    if platform.machine() != "x86_64":
        raise ClocheError(f"no kernel package is known for {platform.machine()}")
    name = concrete_package(_apt_show(meta), meta, prefix)
    version = re.search(r"^Version: (\S+)$", _apt_show(name), re.MULTILINE)
    if version is None:
        raise ClocheError(f"{name}: apt names no version")
    return KernelPackage(name, version[1])


def concrete_package(record: str, meta: str, prefix: str = _PREFIX) -> str:
    """The *prefix* package in the Depends field of *meta*'s `apt-cache show` *record*."""
    depends = re.search(r"^Depends: (.*)$", record, re.MULTILINE)
    for item in depends[1].split(",") if depends else ():
        name = item.split()[0]
        if name.startswith(prefix):
            return name
    raise ClocheError(f"{meta}: depends on no {prefix}* package")


def _apt_show(name: str) -> str:
    try:
        argv = ["apt-cache", "show", "--no-all-versions", name]
        return run_tool(argv, "to look up the kernel package").decode(errors="replace")
    except ClocheError as error:
        if "No packages found" not in error.message:
            raise
        raise NotFoundError(
            f"{name}: apt knows no such package", hint="try: apt-get update"
        ) from error


@contextlib.contextmanager
def fetch_package(package: KernelPackage, near: Path, report: Report) -> Iterator[Path]:
    """Download the package into a private folder in *near*, gone when the block ends."""
    report.step(f"Downloading {package.name} {package.version}")
    near.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download.", dir=near) as folder:
        _apt_download(package, Path(folder), report)
        found = list(Path(folder).glob("*.deb"))
        if len(found) != 1:
            raise ClocheError(f"{package.name}: apt-get download left {len(found)} files, not one")
        yield found[0]


def _apt_download(package: KernelPackage, folder: Path, report: Report) -> None:
    argv = [
        find_tool("apt-get", "to download the kernel package"),
        # apt's own download user (_apt) may not write into a private folder, and apt warns then.
        *("-o", "APT::Sandbox::User=root"),
        "download",
        f"{package.name}={package.version}",
    ]
    reader, writer = os.pipe()
    with open(reader, "rb") as status, tempfile.TemporaryFile() as stderr:
        try:
            argv[1:1] = ["-o", f"APT::Status-Fd={writer}"]
            child = subprocess.Popen(
                argv,
                cwd=folder,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=[writer],
            )
        finally:
            os.close(writer)
        with child:
            for line in status:
                if (fraction := download_fraction(line)) is not None:
                    report.advance(fraction)
        if child.returncode != 0:
            stderr.seek(0)
            raise _download_error(package, child.returncode, stderr.read())


def _download_error(package: KernelPackage, status: int, stderr: bytes) -> ClocheError:
    error = tool_failure("apt-get", f"to download {package.name}", status, stderr)
    if b"404 " in stderr or (b"Version" in stderr and b"not found" in stderr):
        return ClocheError(error.message, hint="apt's lists are old; try: apt-get update")
    if not error.hint:
        error.hint = "is the mirror reachable? apt-get update tells more"
    return error


def download_fraction(line: bytes) -> float | None:
    """Progress out of a line of apt's status descriptor: `dlstatus:1:23.5:Retrieving …`."""
    parts = line.split(b":")
    try:
        return float(parts[2]) / 100 if parts[0] == b"dlstatus" else None
    except (IndexError, ValueError):
        return None


@contextlib.contextmanager
def unpack_package(deb: Path, package: KernelPackage, near: Path, report: Report) -> Iterator[Path]:
    """Unpack *deb* into a private folder in *near*, gone when the block ends."""
    report.step(f"Unpacking {package.name}")
    near.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack.", dir=near) as folder:
        run_tool(["dpkg-deb", "-x", deb, folder], f"to unpack {deb.name}")
        yield Path(folder)
