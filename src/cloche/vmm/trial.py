"""Booting a VM for the first time: which variant of the machine this QEMU starts a kernel with.

A boot that comes to nothing mostly says nothing either. It is given up after some seconds of
silence, not of the clock but of QEMU's own: those in which it had a processor, or wanted none.
"""

from __future__ import annotations

import contextlib
import tempfile
from time import monotonic
from typing import TYPE_CHECKING

from cloche.base.cputime import OwnTime
from cloche.base.errors import BootError
from cloche.base.loop import Loop
from cloche.vmm.boot import launch
from cloche.vmm.vm import Vm

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.vmm.shape import Shape
    from cloche.vmm.variant import Variants

    Boot = Callable[[], tuple[str, str, str]]
    Report = Callable[[str], None]

# A kernel says its first word after 0.3 s, under TCG, and is never silent for longer.
SILENCE_S = 8.0
# Where nothing says a word the machine may be that slow: a VM whose own host is busy, say.
LAST_SILENCE_S = 60.0
# All of a boot takes 2 to 4 s; one that still goes on after so many silences only crawls.
MOST_SILENCES = 8
INTERVAL_S = 0.1
TRIAL_MEMORY = 256


class _Watch:
    """Looks at a booting VM again and again, and fails its `ready` when nothing moves."""

    def __init__(self, vm: Vm, silence: float) -> None:
        self._vm = vm
        self._silence = silence
        self._own = OwnTime(vm.pid)
        self._seen = ""
        self._silent = self._total = 0.0
        self._look_again()

    def _look_again(self) -> None:
        self._timer = self._vm.loop.call_later(INTERVAL_S, self._look)

    def _look(self) -> None:
        vm, passed = self._vm, self._own.passed()
        self._total += passed
        self._silent = self._silent + passed if vm.console.text == self._seen else 0.0
        self._seen = vm.console.text
        if self._silent >= self._silence:
            self._give_up(f"no sign of life for {self._silence:.0f} s")
        elif self._total >= self._silence * MOST_SILENCES:
            self._give_up(f"not ready after {self._total:.0f} s")
        else:
            self._look_again()

    def _give_up(self, why: str) -> None:
        failure = self._vm.failure(why)
        failure.was_silent = True
        self._vm.ready.fail(failure)

    def end(self) -> None:
        self._timer.cancel()


def wait_for_boot(vm: Vm, silence: float) -> None:
    """Run the loop until the agent of a booting *vm* is ready.

    BootError when it is silent for so many seconds of QEMU's own.
    """
    watch = _Watch(vm, silence)
    try:
        vm.loop.run_until(vm.ready)
    finally:
        watch.end()


def try_in_order(
    shape: Shape, variants: Variants, boot: Callable[[float], None], report: Report
) -> None:
    """Call *boot* with *shape* in one variant after the other, until one starts a kernel.

    It is given the silence that ends a boot, in s. The variant stays in the shape, and is kept. A
    guest that came as far as its agent is none that another machine would help: its BootError is
    raised as it is; as is any other error.
    """
    best = variants.best
    attempts = [(variant, SILENCE_S) for variant in variants.in_order()]
    if variants.is_known:
        attempts.insert(0, attempts[0])  # once more: what worked before hardly is at fault
    refused: list[str] = []
    all_silent = True
    while attempts:
        shape.variant, silence = attempts.pop(0)
        number = len(refused) + 1
        report(
            f"booting the guest kernel on {shape.variant} (attempt {number} of at most "
            f"{number + len(attempts)}; given up after {silence:.0f} s of silence)"
        )
        started = monotonic()
        try:
            boot(silence)
        except BootError as error:
            if not error.blames_machine:
                raise
            took = monotonic() - started
            cause = f"{shape.variant} starts no kernel, given up after {took:.1f} s"
            refused.append(f"{cause}: {error.message.removeprefix('VM: ')}")
            report(cause)
            all_silent &= error.was_silent
            if not attempts and all_silent and silence == SILENCE_S:
                attempts.append((best, LAST_SILENCE_S))
            continue
        if not variants.is_known or shape.variant is not best:
            with contextlib.suppress(OSError):  # it is tried again then
                variants.keep(shape.variant, refused)
        return
    shape.variant = best
    raise BootError(
        f"VM: {shape.qemu} starts the guest's kernel on no machine. {'. '.join(refused)}",
        hint=f"in /etc/cloche/config.toml {variants.advice}",
    )


def boot_once(shape: Shape, boot: Boot, silence: float) -> None:
    """Boot a small VM like *shape*, and end it when its agent is ready; BootError if it is not."""
    memory, cpus = shape.memory, shape.cpus
    with tempfile.TemporaryDirectory(prefix="cloche-") as directory:
        loop = Loop()
        vm = Vm(loop, directory)
        shape.memory, shape.cpus = TRIAL_MEMORY, 1
        try:
            launch(vm, shape, share=directory, boot=boot())
            wait_for_boot(vm, silence)
        finally:
            shape.memory, shape.cpus = memory, cpus
            vm.kill()
            if vm.pid:
                loop.run_until(vm.exited)
            loop.close()


def settle(shape: Shape, variants: Variants, boot: Boot) -> None:
    """Give *shape* a variant that works, for a cold boot where no template has told yet."""
    if not variants.is_known:

        def once(silence: float) -> None:
            boot_once(shape, boot, silence)

        try_in_order(shape, variants, once, lambda _: None)
