"""The threads of another process, stopped: their registers, and system calls made in their name.

Through ptrace(2), which nothing on the start path uses.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct

from cloche.base.errors import ClocheError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_PTRACE_SINGLESTEP = 9
_PTRACE_DETACH = 17
_PTRACE_GETREGS, _PTRACE_SETREGS = 12, 13
_PTRACE_GETREGSET = 0x4204
_PTRACE_SEIZE, _PTRACE_INTERRUPT = 0x4206, 0x4207
_PTRACE_GETSIGMASK = 0x420A
_PTRACE_SECCOMP_GET_FILTER = 0x420C
_PTRACE_GET_RSEQ_CONFIGURATION = 0x420F
_NT_X86_XSTATE = 0x202
_GET_ROBUST_LIST = 274
_WALL = 0x40000000  # __WALL: threads too

# struct user_regs_struct of <sys/user.h>, in its order.
REGISTERS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx"),
    *("rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base"),
    *("ds", "es", "fs", "gs"),
)
_REGISTERS = struct.Struct(f"<{len(REGISTERS)}Q")
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_XSTATE_MOST = 16384
_FILTER_MOST = 4096  # instructions of a seccomp filter (BPF_MAXINSNS)
_SYSCALL = b"\x0f\x05"
_U64 = (1 << 64) - 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def _ptrace(request: int, tid: int, address: int = 0, data: object = None) -> int:
    result: int = _libc.ptrace(request, tid, address, data)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"ptrace of {tid}")
    return result


class Thread:
    """One stopped thread."""

    def __init__(self, tid: int) -> None:
        self.tid = tid

    def stop(self) -> None:
        """Stop it, wherever it is; OSError when that is not allowed."""
        _ptrace(_PTRACE_SEIZE, self.tid)
        _ptrace(_PTRACE_INTERRUPT, self.tid)
        self._wait()

    def release(self) -> None:
        """Let it go on."""
        _ptrace(_PTRACE_DETACH, self.tid)

    def _wait(self) -> int:
        """The signal, or event, that it has stopped with."""
        _, status = os.waitpid(self.tid, _WALL)
        if not os.WIFSTOPPED(status):
            raise ClocheError(f"thread {self.tid}: it ended instead of stopping")
        return os.WSTOPSIG(status)

    def registers(self) -> dict[str, int]:
        """All general registers, by name."""
        buffer = ctypes.create_string_buffer(_REGISTERS.size)
        _ptrace(_PTRACE_GETREGS, self.tid, 0, buffer)
        return dict(zip(REGISTERS, _REGISTERS.unpack(buffer.raw), strict=True))

    def _set_registers(self, registers: dict[str, int]) -> None:
        values = [registers[name] & _U64 for name in REGISTERS]
        _ptrace(_PTRACE_SETREGS, self.tid, 0, _REGISTERS.pack(*values))

    def extended_state(self) -> bytes:
        """FPU and vector registers, as XSAVE stores them."""
        buffer = ctypes.create_string_buffer(_XSTATE_MOST)
        vector = struct.pack("<QQ", ctypes.addressof(buffer), _XSTATE_MOST)
        iovec = ctypes.create_string_buffer(vector, len(vector))
        _ptrace(_PTRACE_GETREGSET, self.tid, _NT_X86_XSTATE, iovec)
        return buffer.raw[: struct.unpack("<QQ", iovec.raw)[1]]

    def signal_mask(self) -> int:
        """The signals that it has blocked."""
        buffer = ctypes.create_string_buffer(8)
        _ptrace(_PTRACE_GETSIGMASK, self.tid, 8, buffer)
        return int.from_bytes(buffer.raw, "little")

    def rseq(self) -> tuple[int, int, int]:
        """Address, size and signature of its restartable sequences; zeros for none."""
        buffer = ctypes.create_string_buffer(24)
        _ptrace(_PTRACE_GET_RSEQ_CONFIGURATION, self.tid, 24, buffer)
        address, size, signature = struct.unpack_from("<QII", buffer.raw)
        return address, size, signature

    def robust_list(self) -> tuple[int, int]:
        """Head and size of its list of robust futexes."""
        head, size = ctypes.c_uint64(), ctypes.c_uint64()
        if _libc.syscall(_GET_ROBUST_LIST, self.tid, ctypes.byref(head), ctypes.byref(size)) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), f"get_robust_list of {self.tid}")
        return head.value, size.value

    def seccomp_filters(self) -> list[bytes]:
        """Its seccomp filters as BPF programs, the first one installed first."""
        filters: list[bytes] = []
        while True:
            buffer = ctypes.create_string_buffer(8 * _FILTER_MOST)
            try:
                count = _ptrace(_PTRACE_SECCOMP_GET_FILTER, self.tid, len(filters), buffer)
            except FileNotFoundError:
                return filters  # counted from the first one: get_nth_filter(), kernel/seccomp.c
            except PermissionError:  # seccomp_get_filter() in the kernel's kernel/seccomp.c
                raise ClocheError(
                    "freezing: this process is under a seccomp filter itself, and so may not look "
                    "at QEMU's"
                ) from None
            except OSError as error:
                if error.errno != errno.EINVAL or filters:  # it has none at all
                    raise
                return []
            filters.append(buffer.raw[: 8 * count])

    def call(self, instruction: int, number: int, *arguments: int) -> int:
        """The result of a system call that it makes now, by the `syscall` at *instruction*."""
        before = self.registers()
        # -1: the system call that it was stopped in is not begun again meanwhile.
        changed = before | {"rip": instruction, "rax": number, "orig_rax": -1}
        changed |= dict(zip(_ARGUMENTS, arguments, strict=False))
        self._set_registers(changed)
        _ptrace(_PTRACE_SINGLESTEP, self.tid)
        stopped_by, after = self._wait(), self.registers()
        self._set_registers(before)
        if stopped_by != signal.SIGTRAP or after["rip"] != instruction + len(_SYSCALL):
            raise ClocheError(f"thread {self.tid}: signal {stopped_by} came between")
        result = after["rax"]
        return result - (1 << 64) if result >> 63 else result


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[list[Thread]]:
    """All threads of the process, stopped meanwhile; its main one is the first in the list."""
    threads: dict[int, Thread] = {}
    try:
        while True:
            found = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
            new = [tid for tid in found if tid not in threads]
            if not new:
                break
            for tid in new:
                threads[tid] = Thread(tid)
                threads[tid].stop()
        yield [threads[pid], *(thread for tid, thread in threads.items() if tid != pid)]
    finally:
        for thread in threads.values():
            with contextlib.suppress(OSError):  # it may have been killed
                thread.release()


def find_syscall(code: bytes, address: int) -> int:
    """Where in *code*, which is at *address*, there is a `syscall` instruction."""
    at = code.find(_SYSCALL)
    if at < 0:
        raise ClocheError("freezing: no syscall instruction found in the vDSO")
    return address + at
