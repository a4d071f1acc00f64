"""The script that cloche-thaw carries out (thaw/src/main.rs): a list of system calls; no I/O.

All addresses in it are absolute: it is mapped at SCRIPT, the beginning of the image.
"""

from __future__ import annotations

import struct

from cloche.base.errors import ClocheError

SCRIPT = 0x1000_0000
# Where in the image the script ends at the latest, and the memory begins.
DATA = 1 << 20
PAGE = 4096

SPAWN, RETURN = 1 << 32, (1 << 32) + 1
KEEP, KEPT_FIRST, KEPT_FIFTH, FROM_VDSO = 1, 2, 4, 8

_MAGIC = b"cloche-1"
_HEADER = struct.Struct("<8sQQQ")
_STEP = struct.Struct("<Q6QQ")
_U64 = (1 << 64) - 1

# struct rt_sigframe, less its first word (arch/x86/include/asm/sigframe.h, uapi/asm/sigcontext.h)
_GENERAL = ("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rdi", "rsi", "rbp", "rbx", "rdx")
_UC_FLAGS = 0x7  # UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS
_FP_XSTATE_MAGIC1, _FP_XSTATE_MAGIC2 = 0x46505853, 0x46505845
_SW_RESERVED = 464  # bytes of an XSAVE area that software may use; ptrace has XCR0 there
# What a system call that a signal interrupts returns, inside the kernel (linux/errno.h).
_ERESTARTSYS, _ERESTARTNOINTR, _ERESTARTNOHAND, _ERESTART_RESTARTBLOCK = -512, -513, -514, -516
_EINTR = 4


class Steps:
    """What one thread carries out, in order."""

    def __init__(self) -> None:
        self.encoded = bytearray()

    def __iadd__(self, more: Steps) -> Steps:
        self.encoded += more.encoded
        return self

    def call(self, number: int, *arguments: int, flags: int = 0) -> None:
        """Add one system call, or SPAWN or RETURN."""
        padded = [argument & _U64 for argument in arguments] + [0] * (6 - len(arguments))
        self.encoded += _STEP.pack(number, *padded, flags)


class Script:
    """The memory of a script: steps, and what their arguments point to."""

    def __init__(self) -> None:
        self._memory = bytearray(64)  # the header, and room for more

    def place(self, data: bytes, align: int = 8) -> int:
        """Put *data* somewhere; returns its address."""
        self._memory += bytes(-len(self._memory) % align)
        address = SCRIPT + len(self._memory)
        self._memory += data
        return address

    def text(self, value: str) -> int:
        """The address of a C string."""
        return self.place(value.encode() + b"\0")

    def steps(self, steps: Steps) -> int:
        """The address of the first one."""
        return self.place(bytes(steps.encoded))

    def stack(self) -> int:
        """The top of a stack that a thread needs until it goes on with its own."""
        return self.place(bytes(PAGE), PAGE) + PAGE

    def finish(self, main: Steps, mm_map: int) -> bytes:
        """The whole script, of which the main thread begins with *main*; full pages.

        *mm_map* is the address of a struct prctl_mm_map, for the place of the arguments.
        """
        begin = self.steps(main)
        self._memory += bytes(-len(self._memory) % PAGE)
        if len(self._memory) > DATA:
            raise ClocheError(f"freezing: the script takes {len(self._memory)} bytes")
        _HEADER.pack_into(self._memory, 0, _MAGIC, len(self._memory), begin, mm_map)
        return bytes(self._memory)


def signal_frame(
    script: Script, registers: dict[str, int], *, mask: int, stack: bytes, extended: bytes
) -> int:
    """Place a frame from which rt_sigreturn(2) restores a thread; returns the stack pointer for it.

    It is what the kernel itself puts on the stack of a signal handler. *registers* are those of
    user_regs_struct, *mask* the blocked signals, *stack* its stack_t, *extended* its XSAVE area.
    """
    state = bytearray(extended)
    (features,) = struct.unpack_from("<Q", state, _SW_RESERVED)
    software = (_FP_XSTATE_MAGIC1, len(state) + 4, features, len(state))
    struct.pack_into("<IIQI28x", state, _SW_RESERVED, *software)
    state += struct.pack("<I", _FP_XSTATE_MAGIC2)
    instruction, result = resumption(registers)
    general = [registers[name] for name in _GENERAL]
    general += [result, registers["rcx"], registers["rsp"], instruction, registers["eflags"]]
    frame = struct.pack("<QQ", _UC_FLAGS, 0) + stack
    frame += struct.pack("<18Q4H", *general, registers["cs"], 0, 0, registers["ss"])
    frame += struct.pack("<5Q64x", 0, 0, 0, 0, script.place(bytes(state), 64))
    frame += struct.pack("<Q", mask)
    return script.place(frame, 16)


def resumption(registers: dict[str, int]) -> tuple[int, int]:
    """Instruction and result (rax) with which a thread goes on that was stopped.

    One that waited in a system call makes it again, or is told that it was interrupted, as the
    kernel does after a signal (arch/x86/kernel/signal.c).
    """
    instruction, result, call = (registers[name] for name in ("rip", "rax", "orig_rax"))
    signed = result - (1 << 64) if result >> 63 else result
    if call >> 63:  # -1: it was not in one
        return instruction, result
    if signed in (_ERESTARTSYS, _ERESTARTNOINTR, _ERESTARTNOHAND):
        return instruction - 2, call
    if signed == _ERESTART_RESTARTBLOCK:
        return instruction, -_EINTR & _U64
    return instruction, result
