"""The outer VM: a machine whose CPU has AMD's virtualization, emulated by QEMU's TCG."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cloche.base.errors import NotFoundError
from cloche.vmm.accel import tsc_khz

from .initramfs import SHARE_TAG, build_initramfs
from .kernel import OuterKernel

RESULTS_PORT = "cloche.results"
# Guests inside have 256 MiB; cloche's data, the template's memory included, is on a tmpfs.
MEMORY_MIB = 1536
# With two, TCG's emulated SVM hung once in five runs on a busy machine (QEMU 7.2), all of the VM
# with it, and on one free core everything took twice the time.
CPUS = 1
_CONSOLE_TAIL = 4000


class OuterVm:
    """A running outer VM: *results* is the other end of its results port."""

    def __init__(self, results: socket.socket, console: Path) -> None:
        self.results = results
        self._console = console

    def console_tail(self) -> str:
        """What the VM printed last, the output of its command included."""
        text = self._console.read_text(errors="replace") if self._console.exists() else ""
        return text.replace("\r", "")[-_CONSOLE_TAIL:] or "(silent)"


@contextmanager
def outer_vm(
    kernel: OuterKernel, folder: Path, command: Sequence[str], environment: Mapping[str, str]
) -> Iterator[OuterVm]:
    """Boot the VM and run *command* in *folder* there; it ends with the block at the latest."""
    for program, package in (("qemu-system-x86_64", "qemu-system-x86"), ("setpriv", "util-linux")):
        if shutil.which(program) is None:
            raise NotFoundError(f"{program}: not there", hint=f"try: apt-get install {package}")
    with tempfile.TemporaryDirectory(prefix="cloche-outer-") as work:
        initramfs, console = Path(work, "initramfs"), Path(work, "console")
        initramfs.write_bytes(build_initramfs(kernel.modules, folder, command, environment))
        ours, theirs = socket.socketpair()
        argv = _argv(kernel.vmlinux, initramfs, console, theirs.fileno())
        with ours:
            with theirs, console.with_name("qemu.log").open("wb") as log:
                qemu = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[theirs.fileno()],
                )
            try:
                yield OuterVm(ours, console)
            finally:
                qemu.kill()
                qemu.wait()


def _argv(vmlinux: Path, initramfs: Path, console: Path, results_fd: int) -> list[str]:
    return [
        # It ends with this process however that ends, and lets other work go first.
        *("setpriv", "--pdeathsig", "KILL", "nice", "-n", "5"),
        *("qemu-system-x86_64", "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"),
        # svm is what this is all about. erms=off: TCG copies memory a byte at a time with it.
        *("-M", "q35,accel=tcg", "-cpu", "max,+svm,erms=off"),
        *("-smp", str(CPUS), "-m", str(MEMORY_MIB)),
        *("-kernel", str(vmlinux), "-initrd", str(initramfs), "-append", _cmdline()),
        *("-serial", f"file:{console}"),
        *("-device", "virtio-serial-pci", "-chardev", f"socket,id=results,fd={results_fd}"),
        *("-device", f"virtserialport,chardev=results,name={RESULTS_PORT}"),
        # remap: the machine's file systems appear as one, whose inode numbers must not clash.
        "-fsdev",
        "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
        *("-device", f"virtio-9p-pci,fsdev=host,mount_tag={SHARE_TAG}"),
    ]


def _cmdline() -> str:
    # The calibration of the TSC may hang under TCG; the ciphers' self-tests take 0.2 s.
    tsc = f"tsc_early_khz={tsc_khz()} tsc=reliable no_timer_check"
    return f"console=ttyS0 quiet panic=-1 mitigations=off cryptomgr.notests {tsc}"
