"""cloche's own kernel, compiled from the distribution's source: `cloche kernel build`.

What the distribution's kernel has for every machine, and a guest never uses, costs each start:
under TCG every block of code that runs is translated first, and with KVM it is memory that every
VM maps. kernel.config names what a guest needs; everything else is left out. What few containers
use is a module, which costs nothing until something asks for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from cloche.base.errors import ClocheError
from cloche.guest.kernel import BUILT, BUILT_ROOT, Kernel, check_config, install_built
from cloche.guest.package import KernelPackage, candidate_source, fetch_package
from cloche.guest.report import Report
from cloche.guest.tools import explained_os_errors, find_tool, run_tool, tool_failure

FRAGMENT = Path(__file__).with_name("kernel.config")
# What compiling needs, by the Debian package that has it.
_TOOLS = {
    "make": "make",
    "gcc": "gcc",
    "ld": "binutils",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "perl": "perl",
    "xz": "xz-utils",
    "tar": "tar",
    "depmod": "kmod",
}
_HEADERS = {"gelf.h": "libelf-dev"}
# Source and objects, MiB.
_SPACE = 2600
# Lines that `make` prints on the way to vmlinux, for the progress only.
_STEPS = 1700
_MIB = 1 << 20


def build_kernel(data_root: Path, report: Report) -> Kernel:
    """Compile the kernel, and keep it below *data_root*; of the source nothing is left.

    Takes a few minutes of all processors. Raises ClocheError naming what is missing to compile,
    or with the compiler's own last words.
    """
    report.step("Looking for what compiling a kernel takes")
    check_tools()
    source = candidate_source()
    with explained_os_errors("compile the kernel"), _workshop(data_root) as folder:
        _check_space(folder)
        tree = _unpacked(source, folder, report)
        report.step("Configuring the kernel")
        for name in configure(tree, FRAGMENT.read_text()):
            report.note(f"{source.name} does not know {name}, or not with the others")
        check_config((tree / ".config").read_text(), source.release)
        _make(tree, report)
        return install_built(data_root, tree, origin_of(source))


def origin_of(source: KernelPackage) -> dict[str, object]:
    """What origin.json says of a kernel compiled from *source*."""
    return {
        "source": f"compiled from package {source.name} {source.version}",
        "reason": "cloche's own, smaller than the distribution's",
        "package": source.name,
        "version": source.version,
        "kind": BUILT,
        "fragment": zlib.crc32(FRAGMENT.read_bytes()),
    }


def newer_source(origin: dict[str, object]) -> str | None:
    """Why a kernel of *origin* should be compiled again, in words for people; None if not."""
    try:
        now = origin_of(candidate_source())
    except ClocheError:
        return None  # no apt here, or no lists: nothing newer can be known of
    if all(origin.get(key) == now[key] for key in ("package", "version", "fragment")):
        return None
    return (
        f"the own kernel is {origin.get('source')}, now it would be {now['source']}; "
        "`cloche kernel build` compiles it anew"
    )


def check_tools() -> None:
    """ClocheError with one apt-get line for everything that compiling needs and is not here."""
    missing = set()
    for program, package in _TOOLS.items():
        try:
            find_tool(program, "to compile a kernel")
        except ClocheError:
            missing.add(package)
    if "gcc" not in missing:
        missing.update(package for header, package in _HEADERS.items() if not _has_header(header))
    if missing:
        packages = " ".join(sorted(missing))
        raise ClocheError(
            f"kernel: compiling it needs {packages}", hint=f"try: apt-get install {packages}"
        )


def _has_header(name: str) -> bool:
    argv = [find_tool("gcc", "to compile a kernel"), "-E", "-x", "c", "-", "-o", os.devnull]
    source = f"#include <{name}>\n".encode()
    return subprocess.run(argv, input=source, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def _workshop(data_root: Path) -> Iterator[Path]:
    """A folder to compile in, empty and gone when the block ends; one at a time has it."""
    folder = data_root / "compile"
    data_root.mkdir(parents=True, exist_ok=True)
    with open(data_root / "compile.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClocheError("kernel: another `cloche kernel build` is at work") from None
        shutil.rmtree(folder, ignore_errors=True)  # one that was killed has left it
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _check_space(folder: Path) -> None:
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize // _MIB
    if free < _SPACE:
        raise ClocheError(
            f"kernel: {folder.parent} has {free} MiB free, compiling takes {_SPACE} MiB",
            hint="free some space, or move it with data_root in /etc/cloche/config.toml",
        )


def _unpacked(source: KernelPackage, folder: Path, report: Report) -> Path:
    """The source tree, unpacked in *folder*."""
    with fetch_package(source, folder, report) as deb:
        report.step(f"Unpacking {source.name}")
        run_tool(["dpkg-deb", "-x", deb, folder], f"to unpack {deb.name}")
        archive = next(folder.glob("usr/src/*.tar.*"), None)
        if archive is None:
            raise ClocheError(f"{source.name}: the package holds no source archive")
        run_tool(["tar", "-xf", archive, "-C", folder], f"to unpack {archive.name}")
        tree = next(folder.glob("linux-*/Makefile"), None)
        if tree is None:
            raise ClocheError(f"{source.name}: {archive.name} holds no kernel source")
        archive.unlink()
    return tree.parent


def configure(tree: Path, fragment: str) -> list[str]:
    """Write .config: what *fragment* asks for and nothing else. Returns what could not be had."""
    wanted = tree / "cloche.config"
    wanted.write_text(fragment)
    argv = ["make", "-s", f"KCONFIG_ALLCONFIG={wanted}", "allnoconfig"]
    run_tool(argv, "to configure the kernel", cwd=tree)
    return lost_options(fragment, (tree / ".config").read_text())


def lost_options(fragment: str, config: str) -> list[str]:
    """The lines of *fragment* that switch something on and have not made it into *config*."""
    have = set(config.splitlines())
    asked = re.findall(r"^CONFIG_\w+=(?!n$).+$", fragment, re.MULTILINE)
    return [line for line in asked if line not in have]


def _make(tree: Path, report: Report) -> None:
    """Compile kernel and modules; these are put into BUILT_ROOT below *tree*, without symbols."""
    jobs = len(os.sched_getaffinity(0))
    report.step(f"Compiling the kernel with {jobs} processors")
    make = find_tool("make", "to compile a kernel")
    _run_make([make, f"-j{jobs}", "vmlinux", "modules"], tree, report)
    report.step("Collecting its modules")
    settings = [
        f"INSTALL_MOD_PATH={tree / BUILT_ROOT}",
        "INSTALL_MOD_STRIP=1",
        f"DEPMOD={find_tool('depmod', 'to find the modules dependencies')}",
    ]
    _run_make([make, *settings, "modules_install"], tree, report)


def _run_make(argv: list[str], tree: Path, report: Report) -> None:
    environment = {
        **os.environ,
        "LC_ALL": "C.UTF-8",
        # The same source gives the same kernel, whoever compiles it, and so the same guest.
        "KBUILD_BUILD_TIMESTAMP": "@0",
        "KBUILD_BUILD_USER": "cloche",
        "KBUILD_BUILD_HOST": "cloche",
        "KBUILD_BUILD_VERSION": "1",
    }
    with tempfile.TemporaryFile() as stderr:
        child = subprocess.Popen(
            argv,
            cwd=tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
        with child:
            assert child.stdout is not None
            for number, _ in enumerate(child.stdout):
                report.advance(number / _STEPS)
        if child.returncode != 0:
            stderr.seek(0)
            raise tool_failure("make", "to compile the kernel", child.returncode, stderr.read())
