"""The outer VM's kernel and modules: the distribution's package, as for guests, but with KVM."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

from cloche.base.errors import ClocheError
from cloche.guest.modules import Module, Wanted, read_index, read_module, resolve
from cloche.guest.package import KernelPackage, candidate_package, fetch_package, unpack_package
from cloche.guest.report import Report
from cloche.guest.tools import new_directory, run_tool
from cloche.guest.vmlinux import extract_vmlinux

# In the order in which they are loaded; what they depend on comes before them.
MODULES = (
    Wanted("kvm_amd", "KVM on the emulated SVM"),
    Wanted("virtio_pci", "devices of machine type q35"),
    Wanted("virtio_console", "the port that results are written to"),
    Wanted("9pnet_virtio", "transport of the host's files"),
    Wanted("9p", "the host's files"),
    Wanted("overlay", "a writable layer over the host's files"),
    Wanted("tun", "taps of the VMs inside"),
    Wanted("veth", "networks of the containers inside"),
    Wanted("sch_ingress", "redirects between veth and tap"),
    Wanted("cls_u32", "redirects between veth and tap"),
    Wanted("act_mirred", "redirects between veth and tap"),
)


class OuterKernel(NamedTuple):
    """An uncompressed kernel and its modules, ready to be loaded in this order."""

    vmlinux: Path
    modules: list[Path]


def prepare_kernel(cache: Path, report: Report) -> OuterKernel:
    """The kernel of the outer VM, unpacked below *cache*, where it is found again next time.

    ClocheError says what of apt, network and package is missing.
    """
    package = candidate_package()
    wanted = [want.name for want in MODULES]
    target = cache / package.release
    kernel = _load(target, package, wanted)
    if kernel is None:
        with fetch_package(package, cache, report) as deb:
            _unpack(deb, package, wanted, target, report)
        for older in set(cache.glob("[!.]*")) - {target}:
            shutil.rmtree(older)
        kernel = _load(target, package, wanted)
    if kernel is None:
        raise ClocheError(f"{target}: the outer VM's kernel was unpacked, but is not whole")
    return kernel


def _load(directory: Path, package: KernelPackage, wanted: list[str]) -> OuterKernel | None:
    try:
        origin = json.loads((directory / "origin.json").read_bytes())
        if (origin["version"], origin["wanted"]) != (package.version, wanted):
            return None
        kernel = OuterKernel(directory / "vmlinux", [directory / name for name in origin["load"]])
    except (OSError, ValueError, KeyError):
        return None
    return kernel if all(path.is_file() for path in (kernel.vmlinux, *kernel.modules)) else None


def _unpack(
    deb: Path, package: KernelPackage, wanted: list[str], target: Path, report: Report
) -> None:
    with unpack_package(deb, package, target.parent, report) as root:
        tree = next(root.glob("**/lib/modules/*"))
        if not (tree / "modules.dep").exists():  # Debian runs depmod when a package is installed
            run_tool(["depmod", "-b", tree.parents[2], tree.name], "to order the KVM modules")
        plan = resolve(read_index(tree), MODULES, kernel=package.release)
        image = next(root.glob("boot/vmlinuz-*"))
        with new_directory(target) as work:
            (work / "vmlinux").write_bytes(extract_vmlinux(image.read_bytes(), str(image)))
            names = [_copy_module(module, tree, work) for module in plan.load]
            origin = {"version": package.version, "wanted": wanted, "load": names}
            (work / "origin.json").write_text(json.dumps(origin, indent=2) + "\n")


def _copy_module(module: Module, tree: Path, work: Path) -> str:
    name = f"{module.name}.ko"
    (work / name).write_bytes(read_module(tree / module.path))
    return name
