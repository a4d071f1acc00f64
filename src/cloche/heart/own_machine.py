"""A machine as the `vm` section of config.json wants it. Imported only where there is one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cloche.base.errors import ConfigError
from cloche.guest.agent_binary import require_agent
from cloche.guest.build import guest_of_kernel
from cloche.heart.machine import find_variants
from cloche.model.oci_vm import VM, Kernel, read_vm
from cloche.model.problems import refuse
from cloche.vmm.argv import RootImage
from cloche.vmm.shape import MIB

if TYPE_CHECKING:
    from cloche.guest.guest import Guest
    from cloche.heart.launch import Request
    from cloche.heart.machine import Choice
    from cloche.model.config import Settings

# However few processors the host has.
MOST_IDLE_CPUS = 16
MOST_CMDLINE = 2047  # COMMAND_LINE_SIZE of x86, less the NUL
COLD = "VM: cold boot: $.vm names parameters, an initrd or an image: no part of a template"


def apply(choice: Choice, request: Request) -> None:
    """Change *choice* to what the config of *request* asks for; ConfigError names the field.

    Path of QEMU, path of the kernel and size make a template of their own; all else is a cold boot.
    """
    vm = read_vm(request.glance.vm)
    if vm.hypervisor is not None:
        path = _there("hypervisor.path", vm.hypervisor.path)
        choice.variants = find_variants(request.settings, path)
        choice.shape.qemu, choice.shape.variant = path, choice.variants.best
        choice.parameters = list(vm.hypervisor.parameters)
    if vm.kernel is not None:
        choice.guest = _guest(request.settings, vm.kernel)
        choice.shape.guest_key = choice.guest.key
        choice.words = list(vm.kernel.parameters)
        _check_words(choice)
        if vm.kernel.initrd:
            choice.initramfs = _with_initrd(vm.kernel, choice.guest, request.directory)
    if vm.hardware is not None and vm.hardware.vcpus is not None:
        choice.shape.cpus = _sensible(vm.hardware.vcpus)
    if vm.image is not None:
        path = _there("image.path", vm.image.path)
        choice.root_image = RootImage(path, vm.image.driver, request.glance.root_readonly)
    if choice.parameters or choice.words or choice.initramfs or choice.root_image:
        choice.cold = COLD
    _resize(choice, vm)


def _sensible(vcpus: int) -> int:
    """As many as were asked for; on a host of 2 processors 255 of them boot for minutes."""
    processors = os.cpu_count() or 1
    most = max(MOST_IDLE_CPUS, 4 * processors)
    if vcpus > most:
        has = f"this host has {processors}: at most {most} virtual ones"
        refuse("$.vm.hwConfig.vcpus", f"{vcpus} processors: {has}")
    return vcpus


def _check_words(choice: Choice) -> None:
    size = len(choice.boot()[2].encode())
    if size > MOST_CMDLINE:  # the kernel would cut it off in silence
        refuse(
            "$.vm.kernel.parameters",
            f"a command line of {size} bytes with cloche's own words, at most {MOST_CMDLINE}",
        )


def _resize(choice: Choice, vm: VM) -> None:
    if vm.hardware is not None and vm.hardware.memory is not None:
        choice.shape.memory = -(-vm.hardware.memory // MIB)


def _there(field: str, path: str) -> str:
    if not os.path.isfile(path):
        raise ConfigError(f"$.vm.{field}: {path}: no such file")
    return path


def _guest(settings: Settings, kernel: Kernel) -> Guest:
    path = Path(_there("kernel.path", kernel.path))
    return guest_of_kernel(Path(settings.data_root), path, require_agent())


def _with_initrd(kernel: Kernel, guest: Guest, directory: str) -> str:
    """The user's archive, then the agent's: the kernel unpacks both, and a later file wins.

    Archives are joined at multiples of 4 bytes (early-userspace/buffer-format.rst).
    """
    path = os.path.join(directory, "initramfs")
    theirs = Path(_there("kernel.initrd", kernel.initrd)).read_bytes()
    ours = Path(guest.initramfs).read_bytes()
    with open(path, "wb") as file:
        file.write(theirs + bytes(-len(theirs) % 4) + ours)
    return path
