"""What the end of a QEMU means, in words. Imported only where one ended that was to go on."""

from __future__ import annotations

from cloche.base.errors import BootError, ClocheError, LaunchError
from cloche.vmm.launch import NOT_SHUT_OFF, NOT_STARTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.vmm.vm import Vm


def end(vm: Vm, status: int) -> ClocheError:
    """What an end of QEMU that nobody waited for means."""
    if status not in (NOT_STARTED, NOT_SHUT_OFF):
        error = failure(vm, f"QEMU ended with {described(status)}")
        error.blames_machine &= status != -9  # that was somebody's will
        return error
    lines = vm.log.text.strip().splitlines() if vm.log else []
    return LaunchError(f"VM: QEMU was not executed: {lines[-1] if lines else '(silent)'}")


def failure(vm: Vm, cause: str) -> BootError:
    """An error that tells how far *vm* came, and what console and QEMU said last."""
    last, words = vm.console.last_milestone, vm.last_words()
    error = BootError(
        f"VM: {vm.step}: {cause}; last boot milestone: {last}; {words}",
        hint="`cloche setup --check` tells whether kernel and template fit",
    )
    error.blames_machine = vm.is_booting and not vm.console.has_milestone
    return error


def death(vm: Vm) -> ClocheError:
    """Why a *vm* that was up has ended."""
    if vm.killed_for is not None:
        return vm.killed_for
    status = int(vm.exited.value)
    if status == 0:
        cause = "the guest's kernel crashed, restarted or switched itself off"
    else:
        cause = f"QEMU ended with {described(status)}"
    hint = "did the host run out of memory? dmesg tells" if status == -9 else ""
    return ClocheError(f"VM: {cause}; {vm.last_words()}", hint=hint)


def described(status: int) -> str:
    """An exit code as os.waitstatus_to_exitcode has it."""
    return f"signal {-status}" if status < 0 else f"exit status {status}"
