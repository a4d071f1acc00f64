"""Runs a million iterations of a loop in ring 0 through raw KVM ioctls, and times them.

Structures and numbers: linux/kvm.h, Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import select
import signal
import struct
from time import process_time

from cloche.base.errors import ClocheError

KVM_CREATE_VM = 0xAE01
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_CREATE_VCPU = 0xAE41
KVM_RUN = 0xAE80
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS = 0x8138AE83
KVM_SET_SREGS = 0x4138AE84
KVM_EXIT_HLT = 5

# mov ecx, 1000000; again: dec ecx; jnz again; hlt (32-bit protected mode, flat, no paging)
CODE = bytes.fromhex("b940420f00") + bytes.fromhex("49") + bytes.fromhex("75fd") + b"\xf4"

SEGMENT_SIZE = 24
CR0_OFFSET = 8 * SEGMENT_SIZE + 2 * 16
SREGS_SIZE = 312


def time_ring0_loop(timeout: float) -> float:
    """Seconds for the loop, at most *timeout*; raises ClocheError when KVM refuses to run it.

    They are of processor time: a busy host must not look like one without virtualization. It runs
    in a child: an emulated loop is deaf to everything but SIGKILL.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            seconds = _run_loop()
            os.write(write_end, struct.pack("d", seconds))
        except OSError as error:
            os.write(write_end, os.strerror(error.errno or 0).lower().encode())
        finally:
            os._exit(0)
    os.close(write_end)
    try:
        ready, _, _ = select.select([read_end], [], [], timeout)
        answer = os.read(read_end, 256) if ready else b""
    finally:
        os.close(read_end)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if not ready:
        return timeout
    if len(answer) != 8:
        raise ClocheError(answer.decode(errors="replace") or "the probe died")
    return float(struct.unpack("d", answer)[0])


def _run_loop() -> float:
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
    page = mmap.mmap(-1, 4096)
    page[: len(CODE)] = CODE
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    fcntl.ioctl(vm, KVM_SET_USER_MEMORY_REGION, struct.pack("=IIQQQ", 0, 0, 0, 4096, address))
    vcpu = fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
    run = mmap.mmap(vcpu, fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0))
    sregs = bytearray(SREGS_SIZE)
    fcntl.ioctl(vcpu, KVM_GET_SREGS, sregs)
    _enter_protected_mode(sregs)
    fcntl.ioctl(vcpu, KVM_SET_SREGS, bytes(sregs))
    # struct kvm_regs: 16 general registers, rip, rflags (bit 1 is always set)
    fcntl.ioctl(vcpu, KVM_SET_REGS, struct.pack("=18Q", *([0] * 17), 2))
    started = process_time()
    fcntl.ioctl(vcpu, KVM_RUN, 0)
    elapsed = process_time() - started
    reason = struct.unpack_from("=I", run, 8)[0]
    if reason != KVM_EXIT_HLT:
        raise OSError(0, "no halt")
    return elapsed


def _enter_protected_mode(sregs: bytearray) -> None:
    """Flat 32-bit code and data segments, CR0.PE set."""
    for index in range(6):  # cs, ds, es, fs, gs, ss
        kind = 11 if index == 0 else 3
        selector = 8 if index == 0 else 16
        # base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable, padding
        struct.pack_into(
            "=QIHBBBBBBBBBB",
            sregs,
            index * SEGMENT_SIZE,
            *(0, 0xFFFFFFFF, selector, kind, 1, 0, 1, 1, 0, 1, 0, 0, 0),
        )
    (cr0,) = struct.unpack_from("=Q", sregs, CR0_OFFSET)
    struct.pack_into("=Q", sregs, CR0_OFFSET, cr0 | 1)
