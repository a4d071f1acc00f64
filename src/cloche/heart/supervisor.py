"""The supervisor: the process that stands for a container and owns its VM.

`supervise` reads as the story of a start: namespaces, share, QEMU; then, while QEMU starts, the
imports and the plan; then guest, network, container; then it serves until the container's end.
"""

from __future__ import annotations

import os

from cloche.base import syscalls
from cloche.base.errors import ClocheError
from cloche.base.files import read_text
from cloche.base.limits import explained, lift
from cloche.base.loop import Loop
from cloche.base.quick import suppress
from cloche.base.text import printable
from cloche.heart.launch import HOST_NETWORK, NEW_NETWORK, Channel, Request
from cloche.heart.machine import start_machine
from cloche.host.share import Share
from cloche.vmm.argv import NIC_SLOTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.heart.sandbox import Sandbox
    from cloche.host.taps import Tap


def supervise(request: Request, channel_fd: int) -> int:
    """Run one sandbox to its end; returns the exit status of its container."""
    channel = Channel(channel_fd)
    loop = Loop()
    sandbox: Sandbox | None = None
    try:
        share, taps = _enter(request)
        machine = start_machine(loop, request, share, taps=[tap.fd for tap in taps])
        request.timings.mark("QEMU started")
        for tap in taps:
            os.close(tap.fd)
        channel.send({"event": "namespaces", "vm_pid": machine.vm.pid})
        # From here on QEMU runs beside us: the other imports take no time of its own.
        from cloche.heart.sandbox import Sandbox

        sandbox = Sandbox(loop, request, machine, share, taps, channel)
        status: int = loop.run_until(loop.start(sandbox.run()))
    except ClocheError as error:
        channel.send({"event": "error", "message": error.message, "hint": error.hint})
        status = 1
    except Exception as error:  # a bug of ours: say so instead of a traceback in a dead process
        told = explained(error) or ClocheError(f"internal error: {error!r}")
        channel.send({"event": "error", "message": told.message, "hint": told.hint})
        _log_traceback(request)
        status = 1
    finally:
        if sandbox is not None:
            sandbox.close()
    return status


def _enter(request: Request) -> tuple[Share, list[Tap]]:
    """Become the container's host side: session, namespaces, share, taps."""
    syscalls.prctl_name("cloche")
    request.raised = lift(request.raised)
    if not request.foreground:
        os.setsid()
    if request.ends_with_caller:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)  # the channel tells if it is gone already
    if request.glance.oom_score_adj is not None:
        # Engines protect themselves, and what they start, from the host's OOM killer.
        with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="utf-8") as file:
            file.write(str(request.glance.oom_score_adj))
    has_network = _enter_network(request)
    share = Share(os.path.join(request.directory, "share"))
    share.enter()
    if not has_network or request.stays_alone():
        return share, []
    from cloche.host.taps import open_taps

    return share, open_taps(NIC_SLOTS, persistent=request.glance.network == NEW_NETWORK)


def _enter_network(request: Request) -> bool:
    """Enter or make the container's network namespace; False when there is none of its own."""
    network = request.glance.network
    if network == HOST_NETWORK or request.user_network:
        return False
    if network == NEW_NETWORK:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        return True
    try:
        fd = os.open(network, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ClocheError(
            f"network namespace {network}: {(error.strerror or '').lower()}",
            hint="linux.namespaces in config.json names it; is its owner gone?",
        ) from None
    try:
        syscalls.setns(fd, syscalls.CLONE_NEWNET)
    except OSError:
        raise ClocheError(f"network namespace {network}: not a network namespace") from None
    finally:
        os.close(fd)
    return True


def _log_traceback(request: Request) -> None:
    import traceback

    with (
        suppress(OSError),
        open(os.path.join(request.directory, "traceback.log"), "w", encoding="utf-8") as file,
    ):
        traceback.print_exc(file=file)
    text = read_text(os.path.join(request.directory, "traceback.log"))
    if text and os.environ.get("CLOCHE_DEBUG"):
        os.write(2, "".join(f"{printable(line)}\n" for line in text.splitlines()).encode())
