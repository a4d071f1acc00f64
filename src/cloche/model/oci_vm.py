"""The ``vm`` section of config.json (OCI runtime specification, config-vm.md), and its refusals."""

# Annotations are objects here: base.typed looks at them.

from cloche.base.typed import Struct, field
from cloche.model.oci_linux import U32, U64
from cloche.model.problems import quoted, refuse
from cloche.model.texts import FreeText, PathText, Word, as_kind

# config-vm.md's formats, and QEMU's drivers for them.
IMAGE_DRIVERS = {"raw": "raw", "qcow2": "qcow2", "vdi": "vdi", "vmdk": "vmdk", "vhd": "vpc"}
_SMALLEST = 128 << 20
_LARGEST = 1 << 52  # what an x86-64 processor can address
_MOST_CPUS = 255


class Hypervisor(Struct):
    """The QEMU to run, and what its command line ends with."""

    path: PathText
    parameters: tuple[Word, ...] = ()


class Kernel(Struct):
    """The kernel to boot, and words for its command line."""

    path: PathText
    parameters: tuple[Word, ...] = ()
    initrd: PathText = ""


class Image(Struct):
    """The container's root, in place of a folder: a file system in an image."""

    path: PathText
    format: FreeText

    @property
    def driver(self) -> str:
        """What QEMU calls the format."""
        return IMAGE_DRIVERS[self.format]


class IOMem(Struct):
    """Pages of the host's I/O memory."""

    first_mfn: U64 = field(name="firstMFN")
    nr_mfns: U64 = field(name="nrMFNs")
    first_gfn: U64 | None = field(default=None, name="firstGFN")


class HWConfig(Struct, rename="camel"):
    """The VM's size, and hardware to be passed through; *memory* is in bytes."""

    device_tree: FreeText = ""
    vcpus: U32 | None = None
    memory: U64 | None = None
    dtdevs: tuple[FreeText, ...] = ()
    iomems: tuple[IOMem, ...] = ()
    irqs: tuple[U32, ...] = ()


class VM(Struct):
    """What a container wants of its virtual machine."""

    hypervisor: Hypervisor | None = None
    kernel: Kernel | None = None
    image: Image | None = None
    hw_config: HWConfig | None = field(default=None, name="hwConfig")
    # What config-vm.md calls hwConfig has this name in what programs in Go write (specs-go).
    hwconfig: HWConfig | None = None

    @property
    def hardware(self) -> HWConfig | None:
        """The VM's size, under whichever of the two names."""
        return self.hw_config or self.hwconfig


class _Section(Struct):
    """A config.json of which only this section is known, so that errors name it."""

    vm: VM


def read_vm(section: object) -> VM:
    """The section that was glanced at, before the config as a whole is read; ConfigError."""
    vm: VM = as_kind({"vm": section}, _Section).vm
    check_vm(vm)
    return vm


def check_vm(vm: VM) -> None:
    """ConfigError for what breaks the specification or has no meaning here."""
    if vm.hypervisor is not None:
        _check_absolute("hypervisor.path", vm.hypervisor.path)
    if vm.kernel is not None:
        _check_absolute("kernel.path", vm.kernel.path)
        if vm.kernel.initrd:
            _check_absolute("kernel.initrd", vm.kernel.initrd)
    if vm.image is not None:
        _check_absolute("image.path", vm.image.path)
        if vm.image.format not in IMAGE_DRIVERS:
            known = ", ".join(IMAGE_DRIVERS)
            refuse("$.vm.image.format", f"expected {known}, got {quoted(vm.image.format)}")
    if vm.hw_config is not None and vm.hwconfig is not None:
        refuse("$.vm.hwconfig", "there is hwConfig as well, the same by its other name")
    if vm.hardware is not None:
        _check_hardware(vm.hardware, "$.vm.hwConfig" if vm.hw_config else "$.vm.hwconfig")


def _check_absolute(name: str, path: str) -> None:
    if not path.startswith("/"):
        refuse(f"$.vm.{name}", f"expected an absolute path, got {quoted(path)}")


def _check_hardware(hardware: HWConfig, path: str) -> None:
    for name, value in (
        ("deviceTree", hardware.device_tree),
        ("dtdevs", hardware.dtdevs),
        ("iomems", hardware.iomems),
        ("irqs", hardware.irqs),
    ):
        if value:
            refuse(f"{path}.{name}", "hardware cannot be passed through to an x86 QEMU so")
    if hardware.vcpus is not None and not 0 < hardware.vcpus <= _MOST_CPUS:
        refuse(f"{path}.vcpus", f"expected 1 to {_MOST_CPUS}, got {hardware.vcpus}")
    if hardware.memory is not None and not _SMALLEST <= hardware.memory <= _LARGEST:
        expected = f"{_SMALLEST} bytes at least, for the guest's own, and {_LARGEST} at most"
        refuse(f"{path}.memory", f"expected {expected}, got {hardware.memory}")
