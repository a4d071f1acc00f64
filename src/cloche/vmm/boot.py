"""A VM started by QEMU itself: a boot, or a restore of a template. No part of a thawed start."""

from __future__ import annotations

import os

from cloche.base.descriptors import open_all
from cloche.vmm.argv import Machine, passed_name, qemu_argv
from cloche.vmm.launch import FIRST_FD, host_never_overcommits, pipe_with
from cloche.vmm.vm import AGENT_FD, CONSOLE_FD, INCOMING_FD, QMP_FD
from cloche.wire import qmp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloche.vmm.argv import RootImage
    from cloche.vmm.jail import Jail
    from cloche.vmm.shape import Shape
    from cloche.vmm.vm import Vm

# preload/ has an open(2) of a name below it answered with the descriptor of that number.
FD_FOLDER = "/cloche/fd"


def launch(
    vm: Vm,
    shape: Shape,
    *,
    share: str,
    taps: Sequence[int] = (),
    user_network: bool = False,
    images: Sequence[str] = (),
    disks: Sequence[tuple[int, bool]] = (),
    root_image: RootImage | None = None,
    parameters: Sequence[str] = (),
    boot: tuple[str, str, str] | None = None,
    memory_file: str = "",
    state: bytes | None = None,
    keep_writes: bool = False,
    files: Sequence[int] = (),
    jail: Jail | None = None,
) -> None:
    """Start QEMU: a boot of *boot* (kernel, initramfs, cmdline), or a restore of *state*.

    With *keep_writes* what the guest writes goes to the *memory_file*, as of a boot.
    *disks* are open block devices of the host, and whether each is only read. *files* are
    the descriptors of a FilesSlot, in place of a *share* that QEMU itself serves. In a *jail*
    QEMU has images and memory as descriptors, the memory to be read only.
    """
    ends = vm.connect()
    kernel, initramfs, cmdline = boot or ("", "", "")
    if state is None:
        vm.step = "booting the guest kernel"
        vm.is_booting = True
        incoming = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        vm.monitor.sendall(qmp.CAPABILITIES)
    else:
        vm.step = "restoring the template"
        incoming = pipe_with(state)
        vm.monitor.sendall(qmp.restore_commands(f"fd:{INCOMING_FD}"))
    fds = [*(end.fileno() for end in ends), incoming]
    tap_fds, disk_fds = _number(fds, taps), _number(fds, [fd for fd, _ in disks])
    files_fd, bulk_fd = _number(fds, files) or (-1, -1)
    ours: list[int] = []
    passed: Sequence[int] = ()
    if jail is not None:
        ours = open_all([*images, memory_file] if memory_file else images)
        passed = _number(fds, ours)
        memory_file = memory_file and f"{FD_FOLDER}/{passed[-1]}"
        images = [passed_name(number) for number in passed[: len(images)]]
    argv = vm.argv = qemu_argv(
        Machine(
            qemu=shape.qemu,
            variant=shape.variant,
            accel=shape.accel,
            cpus=shape.cpus,
            memory=shape.memory,
            agent_fd=AGENT_FD,
            qmp_fd=QMP_FD,
            console_fd=CONSOLE_FD,
            kernel=kernel,
            initramfs=initramfs,
            cmdline=cmdline,
            memory_file=memory_file,
            memory_shared=state is None or keep_writes,
            reserve=host_never_overcommits(),
            incoming=state is not None,
            share=share,
            tap_fds=tap_fds,
            user_network=user_network,
            images=images,
            disks=[(fd, read_only) for fd, (_, read_only) in zip(disk_fds, disks, strict=True)],
            root_image=root_image,
            parameters=parameters,
            files_fd=files_fd,
            bulk_fd=bulk_fd,
            passed=passed[: len(images)],
        )
    )
    # QEMU asks for huge pages for TCG's code, of which a small guest fills a few MiB only:
    # 4 MiB less memory a VM, no difference in time. With KVM they are for the guest's memory.
    vm.pid = vm.start(argv, fds, huge_pages=shape.accel == "kvm", jail=jail)
    for fd in (incoming, *ours):
        os.close(fd)
    vm.watch(ends)


def _number(fds: list[int], more: Sequence[int]) -> Sequence[int]:
    """Add *more* to QEMU's descriptors; returns their numbers in its table."""
    first = FIRST_FD + len(fds)
    fds += more
    return range(first, first + len(more))
