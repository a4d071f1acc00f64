"""Booting a VM for the first time: which variant of the machine this QEMU starts a kernel with.

A boot that comes to nothing mostly says nothing either. It is given up after some seconds of
silence, not of the clock but of QEMU's own: those in which it had a processor, or wanted none.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from time import monotonic
from typing import TYPE_CHECKING

from cloche.base.errors import BootError
from cloche.base.loop import Loop
from cloche.vmm.vm import Vm

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.vmm.shape import Shape
    from cloche.vmm.variant import Variants

    Boot = Callable[[], tuple[str, str, str]]
    Report = Callable[[str], None]

# A kernel says its first word after 0.3 s, under TCG, and is never silent for longer.
SILENCE_S = 8.0
# All of a boot takes 2 to 4 s; one that still goes on after that only crawls.
BOOT_S = 60.0
_INTERVAL_S = 0.1
TRIAL_MEMORY = 256


class OwnTime:
    """Seconds in which the process *pid* was not kept waiting for a processor by others."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._at = monotonic()
        self._delays = self._read()

    def passed(self) -> float:
        """Since the last question. Of its threads the one that waited longest counts."""
        at, delays = monotonic(), self._read()
        waited = max((delays[tid] - self._delays.get(tid, 0) for tid in delays), default=0)
        passed = max(0.0, at - self._at - waited / 1e9)
        self._at, self._delays = at, delays
        return passed

    def _read(self) -> dict[str, int]:
        """Thread → ns that it waited on a run queue (Documentation/scheduler/sched-stats.rst)."""
        found = {}
        with contextlib.suppress(OSError, ValueError, IndexError):
            for tid in os.listdir(f"/proc/{self._pid}/task"):
                with open(f"/proc/{self._pid}/task/{tid}/schedstat", encoding="ascii") as file:
                    found[tid] = int(file.read().split()[1])
        return found


class _Watch:
    """Looks at a booting VM again and again, and fails its `ready` when nothing moves."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._own = OwnTime(vm.pid)
        self._seen = b""
        self._silent = self._total = 0.0
        self._look_again()

    def _look_again(self) -> None:
        self._timer = self._vm.loop.call_later(_INTERVAL_S, self._look)

    def _look(self) -> None:
        vm, passed = self._vm, self._own.passed()
        self._total += passed
        self._silent = self._silent + passed if vm.console == self._seen else 0.0
        self._seen = bytes(vm.console)
        if self._silent >= SILENCE_S:
            vm.ready.fail(vm.failure(f"no sign of life for {SILENCE_S:.0f} s"))
        elif self._total >= BOOT_S:
            vm.ready.fail(vm.failure(f"not ready after {BOOT_S:.0f} s"))
        else:
            self._look_again()

    def end(self) -> None:
        self._timer.cancel()


def wait_for_boot(vm: Vm) -> None:
    """Run the loop until the agent of a booting *vm* is ready; BootError when nothing moves."""
    watch = _Watch(vm)
    try:
        vm.loop.run_until(vm.ready)
    finally:
        watch.end()


def try_in_order(
    shape: Shape, variants: Variants, boot: Callable[[], None], report: Report
) -> None:
    """Call *boot* with *shape* in one variant after the other, until one starts a kernel.

    That one stays in the shape, and is kept. A guest that came as far as its agent is none that
    another machine would help: its BootError is raised as it is; as is any other error.
    """
    order = variants.in_order()
    if variants.is_known:
        order.insert(0, order[0])  # once more: what worked before hardly is at fault
    refused: list[str] = []
    for number, variant in enumerate(order, 1):
        shape.variant = variant
        report(
            f"booting the guest kernel on {variant} (attempt {number} of at most "
            f"{len(order)}; given up after {SILENCE_S:.0f} s of silence)"
        )
        started = monotonic()
        try:
            boot()
        except BootError as error:
            if not error.blames_machine:
                raise
            cause = f"{variant} starts no kernel, given up after {monotonic() - started:.1f} s"
            refused.append(f"{cause}: {error.message.removeprefix('VM: ')}")
            report(cause)
            continue
        if not variants.is_known or variant is not order[0]:
            with contextlib.suppress(OSError):  # it is tried again then
                variants.keep(variant, refused)
        return
    shape.variant = order[0]
    raise BootError(
        f"VM: {shape.qemu} starts the guest's kernel on no machine. {'. '.join(refused)}",
        hint=f"in /etc/cloche/config.toml {variants.advice}",
    )


def boot_once(shape: Shape, boot: Boot) -> None:
    """Boot a small VM like *shape*, and end it when its agent is ready; BootError if it is not."""
    memory, cpus = shape.memory, shape.cpus
    with tempfile.TemporaryDirectory(prefix="cloche-") as directory:
        loop = Loop()
        vm = Vm(loop, directory)
        shape.memory, shape.cpus = TRIAL_MEMORY, 1
        try:
            vm.launch(shape, share=directory, boot=boot())
            wait_for_boot(vm)
        finally:
            shape.memory, shape.cpus = memory, cpus
            vm.kill()
            if vm.pid:
                loop.run_until(vm.exited)
            loop.close()


def settle(shape: Shape, variants: Variants, boot: Boot) -> None:
    """Give *shape* a variant that works, for a cold boot where no template has told yet."""
    if not variants.is_known:
        try_in_order(shape, variants, lambda: boot_once(shape, boot), lambda _: None)
