"""Which kernel the guest boots, and where it is unpacked.

    <data root>/kernels/<name>/{vmlinux,config,modules/,origin.json}

Looked for in this order: the path that the configuration names; cloche's own kernel, where
`cloche kernel build` has compiled one; the distribution's kernel package, downloaded and unpacked,
but not installed; the newest usable kernel in /boot.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from cloche.base.errors import ClocheError, NotFoundError
from cloche.guest.guest import fingerprint
from cloche.guest.module_store import STORE, cut_down, keeps_modules, stored
from cloche.guest.modules import WANTED, ModulePlan, read_index, resolve
from cloche.guest.package import KernelPackage, candidate_package, fetch_package, unpack_package
from cloche.guest.report import Report, SilentReport
from cloche.guest.tools import explained_os_errors, new_directory, run_tool
from cloche.guest.vmlinux import extract_vmlinux, kernel_release

_DEPMOD_FILES = ("modules.dep", "modules.builtin", "modules.softdep", "modules.alias")
_FORMAT = 1
# The kind of kernel that `cloche kernel build` makes.
BUILT = "built"
# Where its modules are installed, below the source.
BUILT_ROOT = "cloche.root"

# What a kernel must have built in for a guest to come up and hold containers.
REQUIRED_CONFIG = {
    "CONFIG_BLK_DEV_INITRD": "the initramfs",
    "CONFIG_CGROUPS": "resource limits",
    "CONFIG_CGROUP_BPF": "device rules",
    "CONFIG_DEVTMPFS": "device nodes",
    "CONFIG_NAMESPACES": "containers",
    "CONFIG_SECCOMP_FILTER": "seccomp profiles",
    "CONFIG_SERIAL_8250_CONSOLE": "the console",
    "CONFIG_TMPFS": "tmpfs mounts",
    "CONFIG_UNIX": "unix sockets",
}


class Kernel(NamedTuple):
    """An unpacked kernel. *origin* is what origin.json says: where it came from and why."""

    release: str
    directory: Path
    origin: dict[str, Any]

    @property
    def vmlinux(self) -> Path:
        """The uncompressed ELF kernel."""
        return self.directory / "vmlinux"

    @property
    def modules(self) -> Path:
        """The modules that the guest loads, or may ask for, with depmod's files."""
        return self.directory / "modules"

    @property
    def source(self) -> str:
        """Where it came from, for people."""
        return str(self.origin["source"])


def kernels_root(data_root: Path) -> Path:
    """The folder of all unpacked kernels."""
    return data_root / "kernels"


def load_kernel(directory: Path) -> Kernel | None:
    """The kernel unpacked in *directory*, or None when it is not whole."""
    try:
        origin = json.loads((directory / "origin.json").read_bytes())
        if origin["format"] != _FORMAT or not (directory / "vmlinux").is_file():
            return None
        kernel = Kernel(origin["release"], directory, origin)
        plan = resolve(read_index(kernel.modules), kernel=kernel.release)
    except (OSError, ValueError, KeyError, TypeError, ClocheError):
        return None
    # An older cloche may have wanted, and so kept, other modules.
    whole = all((kernel.modules / module.path).is_file() for module in plan.load)
    return kernel if whole else None


def find_kernel(
    data_root: Path, configured: Path | None = None, report: Report | None = None
) -> Kernel:
    """The kernel to use, unpacked. Raises ClocheError with the reason of every place tried.

    A *configured* path is used or is an error; nothing else is tried in its place.
    """
    report = report or SilentReport()
    with explained_os_errors("prepare the guest's kernel"):
        if configured is not None:
            return _configured_kernel(data_root, configured)
        if (built := built_kernel(data_root)) is not None:
            return built
        try:
            return _package_kernel(data_root, report)
        except ClocheError as package_error:
            report.note(f"no kernel package: {package_error}")
            try:
                return boot_kernel(data_root)
            except ClocheError as boot_error:
                raise NotFoundError(
                    f"no kernel for the guest: package: {package_error.message}; "
                    f"/boot: {boot_error.message}",
                    hint=package_error.hint or boot_error.hint,
                ) from boot_error


def _configured_kernel(data_root: Path, path: Path) -> Kernel:
    """*path* is a folder laid out as ours, or a kernel image whose modules are found beside it."""
    if path.is_dir():
        if (kernel := load_kernel(path)) is None:
            raise ClocheError(
                f"{path}: holds no complete kernel",
                hint="it needs vmlinux, modules/modules.dep and origin.json, or name an image",
            )
        return kernel
    if not path.is_file():
        raise NotFoundError(f"{path}: no such kernel", hint="see `kernel` in cloche's config.toml")
    origin: dict[str, object] = {"reason": "named in cloche's configuration"}
    return _image_kernel(data_root, path, "configured", origin)


def _package_kernel(data_root: Path, report: Report) -> Kernel:
    """The distribution's kernel package; the one unpacked last when apt cannot say which."""
    report.step("Looking up the distribution's kernel package")
    try:
        package = candidate_package()
    except ClocheError as error:
        if (kernel := _newest_package_kernel(data_root)) is None:
            raise
        report.note(f"{error}; keeping {kernel.source}")
        return kernel
    target = kernels_root(data_root) / package.release
    kernel = load_kernel(target)
    is_same = kernel is not None and kernel.origin.get("version") == package.version
    if kernel is not None and is_same and keeps_modules(kernel.origin):
        return kernel
    try:
        with fetch_package(package, kernels_root(data_root), report) as deb:
            return install_package(deb, package, data_root, report)
    except ClocheError as error:
        if kernel is None or not is_same:
            raise
        report.note(f"{error}; keeping {kernel.source} without modules that containers ask for")
        return kernel


def install_package(
    deb: Path, package: KernelPackage, data_root: Path, report: Report | None = None
) -> Kernel:
    """Unpack the kernel package in file *deb* below *data_root*."""
    report = report or SilentReport()
    with unpack_package(deb, package, kernels_root(data_root), report) as root:
        image = next(root.glob("boot/vmlinuz-*"), None)
        # Debian 12 ships /lib/modules, later releases /usr/lib/modules.
        tree = next(chain(root.glob("usr/lib/modules/*"), root.glob("lib/modules/*")), None)
        if image is None or tree is None:
            raise ClocheError(f"{package.name}: the package holds no kernel with modules")
        if not (tree / "modules.dep").exists():  # Debian runs depmod when a package is installed
            base = tree.parents[2]
            run_tool(["depmod", "-b", base, tree.name], "to find the modules' dependencies")
        origin = {
            "source": f"package {package.name} {package.version}",
            "reason": "the distribution's current kernel",
            "package": package.name,
            "version": package.version,
        }
        report.step("Extracting vmlinux and the modules that the guest needs")
        return _install(data_root, tree.name, image, tree, origin)


def _newest_package_kernel(data_root: Path) -> Kernel | None:
    return _newest(data_root, lambda origin: "package" in origin and "kind" not in origin)


def built_kernel(data_root: Path) -> Kernel | None:
    """cloche's own kernel, or None where none was compiled."""
    return _newest(data_root, is_built)


def is_built(origin: Mapping[str, object]) -> bool:
    """Whether a kernel of this origin is cloche's own."""
    return origin.get("kind") == BUILT


def _newest(data_root: Path, wanted: Callable[[dict[str, Any]], bool]) -> Kernel | None:
    kernels = map(load_kernel, kernels_root(data_root).glob("[!.]*"))
    found = [kernel for kernel in kernels if kernel is not None and wanted(kernel.origin)]
    return max(found, key=lambda kernel: version_key(kernel.release), default=None)


def newest_boot_image(boot: Path = Path("/boot")) -> Path | None:
    """The kernel image of the highest release in /boot."""
    return next(iter(_boot_images(boot)), None)


def _boot_images(boot: Path) -> list[Path]:
    return sorted(boot.glob("vmlinuz-*"), key=lambda path: version_key(path.name), reverse=True)


def boot_kernel(data_root: Path, boot: Path = Path("/boot")) -> Kernel:
    """The newest kernel in /boot that a guest can use."""
    refused: list[str] = []
    images = _boot_images(boot)
    for image in images:
        origin: dict[str, object] = {
            "reason": "the newest usable kernel in /boot",
            # Kernels newer than the one taken were refused; a still newer one is worth a try.
            "newest": str(images[0]),
        }
        try:
            return _image_kernel(data_root, image, "boot", origin)
        except ClocheError as error:
            refused.append(error.message)
    raise NotFoundError(
        "; ".join(refused) or f"no {boot}/vmlinuz-*",
        hint="name a kernel in cloche's config.toml, or run apt-get update",
    )


def _image_kernel(data_root: Path, image: Path, kind: str, origin: dict[str, object]) -> Kernel:
    """Install a kernel image that lies somewhere on this host."""
    release = kernel_release(image.read_bytes(), str(image))
    name = f"{release}+{kind}"
    origin = {"source": str(image), "image": fingerprint(image), "store": STORE, **origin}
    kernel = load_kernel(kernels_root(data_root) / name)
    if kernel is not None and origin.items() <= kernel.origin.items():
        return kernel
    tree = next((path for path in _module_trees(image, release) if path.is_dir()), None)
    if tree is None:
        places = ", ".join(map(str, _module_trees(image, release)))
        raise NotFoundError(f"{image}: no modules for {release} at {places}")
    return _install(data_root, name, image, tree, origin)


def install_built(data_root: Path, tree: Path, origin: Mapping[str, object]) -> Kernel:
    """Install what was compiled in the source *tree*; it replaces the one compiled before."""
    image = tree / "vmlinux"
    release = kernel_release(image.read_bytes(), str(image))
    shutil.copyfile(tree / ".config", tree / f"config-{release}")
    modules = tree / BUILT_ROOT / "lib" / "modules" / release
    before = built_kernel(data_root)
    kernel = _install(data_root, f"{release}+{BUILT}", image, modules, origin)
    if before is not None and before.directory != kernel.directory:
        shutil.rmtree(before.directory)
    return kernel


def _module_trees(image: Path, release: str) -> Iterator[Path]:
    """Where the modules of a kernel image may be."""
    yield image.parent / "modules"
    yield image.parent.parent / "lib" / "modules" / release
    yield Path("/lib/modules") / release


def _install(
    data_root: Path, name: str, image: Path, tree: Path, origin: Mapping[str, object]
) -> Kernel:
    """Make <kernels>/<name> out of a kernel image and a module tree."""
    data = image.read_bytes()
    release = kernel_release(data, str(image))
    plan = resolve(read_index(tree), WANTED, kernel=release)
    vmlinux = extract_vmlinux(data, str(image))
    config = image.with_name(f"config-{release}")
    if config.is_file():
        check_config(config.read_text(), release)
    target = kernels_root(data_root) / name
    with new_directory(target) as work:
        (work / "vmlinux").write_bytes(vmlinux)
        if config.is_file():
            shutil.copyfile(config, work / "config")
        _keep_modules(tree, plan, work / "modules")
        whole = {"format": _FORMAT, "release": release, "store": STORE, **origin}
        (work / "origin.json").write_text(json.dumps(whole, indent=2) + "\n")
    return Kernel(release, target, whole)


def _keep_modules(tree: Path, plan: ModulePlan, target: Path) -> None:
    """Copy what is loaded at boot, what may be asked for later, and depmod's files about them."""
    index = read_index(tree)
    names = stored(index) | {module.name for module in plan.load}
    for path in (index.paths[name] for name in names):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tree / path, target / path)
    target.mkdir(exist_ok=True)
    for name in filter(lambda name: (tree / name).exists(), _DEPMOD_FILES):
        (target / name).write_text(cut_down(name, (tree / name).read_text(), names))


def check_config(text: str, release: str) -> None:
    """ClocheError that names what a kernel's build configuration *text* lacks for a guest."""
    built_in = {line.removesuffix("=y") for line in text.splitlines() if line.endswith("=y")}
    missing = {name: why for name, why in REQUIRED_CONFIG.items() if name not in built_in}
    if missing:
        names = ", ".join(f"{name} ({why})" for name, why in missing.items())
        raise ClocheError(f"kernel {release}: built without {names}")


def version_key(name: str) -> list[tuple[int, str]]:
    """Sorts `6.1.0-9` before `6.1.0-56`."""
    return [
        (int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|\D+", name)
    ]
