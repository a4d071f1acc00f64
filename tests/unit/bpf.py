"""What the kernel does with a seccomp program: classic BPF over struct seccomp_data."""

from __future__ import annotations

import struct
from collections.abc import Sequence

X86_64 = 0xC000003E
X86 = 0x40000003
AARCH64 = 0xC00000B7
X32_BIT = 0x40000000

ALLOW = 0x7FFF0000
KILL = 0
ERRNO = 0x00050000


def verdict(program: bytes, architecture: int, number: int, args: Sequence[int] = ()) -> int:
    """The SECCOMP_RET_* value for one system call (instructions: linux/bpf_common.h)."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *args, *([0] * (6 - len(args))))
    accumulator = at = 0
    while True:
        code, if_true, if_false, operand = struct.unpack_from("<HBBI", program, at * 8)
        at += 1
        match code:
            case 0x20:  # load a word of the data
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x54:  # and
                accumulator &= operand
            case 0x05:  # jump
                at += operand
            case 0x15:
                at += if_true if accumulator == operand else if_false
            case 0x25:
                at += if_true if accumulator > operand else if_false
            case 0x35:
                at += if_true if accumulator >= operand else if_false
            case 0x45:
                at += if_true if accumulator & operand else if_false
            case 0x06:
                return int(operand)
            case _:
                raise AssertionError(f"instruction {code:#x}")
