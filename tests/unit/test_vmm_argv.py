"""QEMU's command line, whole: what a boot, a template and a clone are told."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from cloche.vmm.argv import (
    Machine,
    Variant,
    kernel_cmdline,
    passed_name,
    qemu_argv,
    quote,
    variants,
)

COMMON: dict[str, Any] = {
    "qemu": "/usr/bin/qemu-system-x86_64",
    "accel": "tcg",
    "cpus": 2,
    "memory": 512,
    "agent_fd": 3,
    "qmp_fd": 4,
    "console_fd": 5,
    "share": "/run/cloche/box/share",
}
MICROVM = Variant("microvm", ("acpi=on", "rtc=on"), "max")
Q35 = Variant("q35", (), "max")
HEAD = [
    "/usr/bin/qemu-system-x86_64",
    *("-name", "cloche", "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"),
    *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
]


def devices(bus: str, rom: str, *, first_nic: str, first_disk: str) -> list[str]:
    """The devices, the same for every VM but for what stands behind the first slots."""
    nics = [first_nic, "hubport,id=net1,hubid=1", "hubport,id=net2,hubid=2"]
    empty = "driver=null-co,node-name=slot{},read-only=on,size=1099511627776,read-zeroes=on"
    argv = [
        *("-chardev", "socket,id=qmp,fd=4", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", "socket,id=console,fd=5", "-serial", "chardev:console"),
        *("-device", f"virtio-serial-{bus},id=serial", "-chardev", "socket,id=agent,fd=3"),
        "-device",
        "virtserialport,bus=serial.0,chardev=agent,id=agent,name=cloche.agent",
        "-fsdev",
        "local,id=share,path=/run/cloche/box/share,security_model=passthrough,multidevs=remap",
        *("-device", f"virtio-9p-{bus},fsdev=share,mount_tag=cloche"),
    ]
    for slot, backend in enumerate(nics):
        mac = f"52:54:00:c1:0c:0{slot}"
        offers = "guest_announce=off,guest_ufo=off,host_ufo=off"
        card = f"virtio-net-{bus},netdev=net{slot},mac={mac},{offers}{rom}"
        argv += ["-netdev", backend, "-device", card]
    for slot, backend in enumerate([first_disk or empty.format(0), empty.format(1)]):
        argv += ["-blockdev", backend]
        argv += ["-device", f"virtio-blk-{bus},drive=slot{slot},serial=cloche{slot}"]
    return argv


def test_a_cold_boot_of_a_microvm() -> None:
    machine = Machine(variant=MICROVM, kernel="/k", initramfs="/i", cmdline="a b", **COMMON)
    assert qemu_argv(machine) == [
        *HEAD,
        *("-M", "microvm,memory-backend=ram,acpi=on,rtc=on"),
        *("-accel", "tcg,tb-size=128", "-cpu", "max", "-smp", "2", "-m", "512M"),
        *("-object", "memory-backend-ram,id=ram,size=512M,reserve=off"),
        *("-kernel", "/k", "-initrd", "/i", "-append", "a b"),
        *devices("device", "", first_nic="hubport,id=net0,hubid=0", first_disk=""),
    ]


def test_a_clone_of_a_q35_with_tap_and_image() -> None:
    machine = Machine(
        variant=Variant("q35", (), "host"),
        memory_file="/t/memory",
        incoming=True,
        tap_fds=[7],
        images=["/images/a,b.erofs"],
        **{**COMMON, "accel": "kvm"},
    )
    image = "driver=raw,node-name=slot0,read-only=on,file.driver=file,file.filename="
    assert qemu_argv(machine) == [
        *HEAD,
        *("-M", "q35,memory-backend=ram"),
        *("-accel", "kvm", "-cpu", "host", "-smp", "2", "-m", "512M", "-object"),
        "memory-backend-file,id=ram,size=512M,reserve=off,mem-path=/t/memory,share=off",
        *("-incoming", "defer"),
        *devices(
            "pci",
            ",romfile=",
            first_nic="tap,id=net0,fd=7",
            first_disk=f"{image}/images/a,,b.erofs",
        ),
    ]


def test_a_template_shares_its_memory_with_its_file() -> None:
    machine = Machine(variant=MICROVM, memory_file="/t/a,b", memory_shared=True, **COMMON)
    option = "memory-backend-file,id=ram,size=512M,reserve=off,mem-path=/t/a,,b,share=on"
    assert option in qemu_argv(machine)


def test_disks_of_the_host_come_behind_the_slots() -> None:
    machine = Machine(variant=MICROVM, kernel="/k", disks=[(9, False), (10, True)], **COMMON)
    node = "driver=raw,node-name=slot{0},read-only={1},file.driver=host_device"
    argv = qemu_argv(machine)
    assert argv[argv.index("-add-fd") :] == [
        *("-add-fd", "fd=9,set=2"),
        *("-blockdev", f"{node.format(2, 'off')},file.filename=/dev/fdset/2"),
        *("-device", "virtio-blk-device,drive=slot2,serial=cloche2"),
        *("-add-fd", "fd=10,set=3"),
        *("-blockdev", f"{node.format(3, 'on')},file.filename=/dev/fdset/3"),
        *("-device", "virtio-blk-device,drive=slot3,serial=cloche3"),
    ]


@pytest.mark.parametrize(("variant", "bus"), [(MICROVM, "device"), (Q35, "pci")])
def test_another_program_may_serve_the_files(variant: Variant, bus: str) -> None:
    argv = qemu_argv(Machine(variant=variant, files_fd=7, bulk_fd=8, **COMMON))
    assert argv[2] == "cloche /run/cloche/box/share"
    begin = argv.index("socket,id=files,fd=7") - 1
    bulk = "driver=raw,node-name=bulk,file.driver=file,file.locking=off"
    assert argv[begin : begin + 8] == [
        *("-chardev", "socket,id=files,fd=7"),
        *("-device", "virtserialport,bus=serial.0,chardev=files,id=files,name=cloche.files"),
        *("-add-fd", "fd=8,set=0"),
        *("-blockdev", f"{bulk},file.filename=/dev/fdset/0"),
    ]
    assert f"virtio-blk-{bus},drive=bulk,serial=cloche-bulk" in argv
    assert not any("9p" in word for word in argv)


def test_an_image_may_be_a_descriptor() -> None:
    """Sets have numbers of their own, so that none is a disk's."""
    argv = qemu_argv(Machine(**COMMON, variant=MICROVM, images=[passed_name(9)], passed=[9]))
    assert argv[argv.index("-add-fd") + 1] == "fd=9,set=1009"
    assert any(word.endswith("file.filename=/dev/fdset/1009") for word in argv)


def test_memory_may_be_reserved() -> None:
    machine = Machine(variant=MICROVM, reserve=True, **COMMON)
    assert "memory-backend-ram,id=ram,size=512M,reserve=on" in qemu_argv(machine)


def test_user_mode_network_takes_the_first_slot() -> None:
    machine = Machine(variant=MICROVM, user_network=True, **COMMON)
    argv = qemu_argv(machine)
    assert "user,id=net0" in argv
    taps = Machine(variant=MICROVM, user_network=True, tap_fds=[7, 8, 9], **COMMON)
    backends = [word for word in qemu_argv(taps) if "id=net" in word]
    assert backends == [f"tap,id=net{slot},fd={7 + slot}" for slot in range(3)]


@pytest.mark.parametrize("variant", [MICROVM, Q35], ids=str)
def test_boot_and_clone_have_the_same_devices(variant: Variant) -> None:
    """Else a clone could not load what its template has saved."""
    boot = Machine(variant=variant, kernel="/k", initramfs="/i", **COMMON)
    clone = Machine(variant=variant, memory_file="/m", incoming=True, tap_fds=[7], **COMMON)
    cards = [
        [word for flag, word in itertools.pairwise(argv) if flag == "-device"]
        for argv in (qemu_argv(boot), qemu_argv(clone))
    ]
    assert cards[0] == cards[1]


def test_commas_are_doubled() -> None:
    assert quote("/a,b,,c") == "/a,,b,,,,c"


def test_the_kernels_command_line() -> None:
    line = kernel_cmdline(machine="microvm", accel="tcg", tsc_khz=2600000, randomize=False)
    words = line.split()
    assert "norandmaps" in words
    assert {"tsc_early_khz=2600000", "tsc=reliable", "no_timer_check", "pci=off"} <= {*words}
    words = kernel_cmdline(machine="q35", accel="kvm", tsc_khz=0, randomize=True).split()
    assert "norandmaps" not in words
    assert not [word for word in words if word.startswith(("tsc", "pci", "no_timer"))]
    assert {"panic=-1", "reboot=t", "console=ttyS0"} <= {*words}


def test_the_last_variant_is_plain() -> None:
    for accel, cpu in (("tcg", "max"), ("kvm", "host")):
        last = variants(accel, "auto")[-1]
        assert (last.machine, last.options, last.cpu) == ("q35", (), cpu)


@pytest.mark.parametrize("machine", ["microvm", "q35"])
def test_a_machine_type_that_is_named_is_the_only_one_tried(machine: str) -> None:
    found = variants("tcg", machine)
    assert {variant.machine for variant in found} == {machine}
    assert found[-1].cpu == "max"


def test_no_guest_has_fsrm_without_erms() -> None:
    """Linux takes the one for the other, and hangs early in its boot."""
    cpus = [variant.cpu for accel in ("tcg", "kvm") for variant in variants(accel, "auto")]
    assert [cpu for cpu in cpus if ("erms=off" in cpu) != ("fsrm=off" in cpu)] == []


def test_no_option_is_experimental() -> None:
    """What QEMU itself calls so (x-…) is gone, or means something else, in another version."""
    for variant in variants("tcg", "auto"):
        machine = Machine(variant=variant, kernel="/k", **COMMON)
        assert not [word for word in qemu_argv(machine) if re.search(r"(^|,)x-", word)]
