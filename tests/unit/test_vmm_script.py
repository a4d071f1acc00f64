"""Scripts for cloche-thaw: how steps are encoded, and the frame from which a thread goes on."""

from __future__ import annotations

import ctypes
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.base.errors import ClocheError
from cloche.vmm.ptrace import REGISTERS
from cloche.vmm.script import (
    DATA,
    FROM_VDSO,
    KEEP,
    KEPT_FIFTH,
    KEPT_FIRST,
    PAGE,
    RETURN,
    SCRIPT,
    SPAWN,
    Script,
    Steps,
    resumption,
    signal_frame,
)

STEP_SIZE = 64
SYSCALL_SIZE = 2
# Where a struct prctl_mm_map might be.
MAP = SCRIPT + 64
U64 = (1 << 64) - 1
# <linux/errno.h>, which no user space sees.
RESTARTING = {"ERESTARTSYS": 512, "ERESTARTNOINTR": 513, "ERESTARTNOHAND": 514}
ERESTART_RESTARTBLOCK, EINTR, EAGAIN, EFAULT = 516, 4, 11, 14
ALL_FLAGS = KEEP | KEPT_FIRST | KEPT_FIFTH | FROM_VDSO

words = st.integers(0, U64)
signed_words = st.integers(-(1 << 63), U64)
calls = st.tuples(
    st.one_of(st.integers(0, 500), st.sampled_from([SPAWN, RETURN])),
    st.lists(signed_words, max_size=6),
    st.integers(0, ALL_FLAGS),
)
pieces = st.lists(
    st.tuples(st.binary(max_size=300), st.sampled_from([1, 8, 16, 64, PAGE])), max_size=20
)


def decoded(data: bytes) -> list[tuple[int, tuple[int, ...], int]]:
    """Number, arguments and flags of each step, as thaw/src/main.rs reads them."""
    steps = [data[at : at + STEP_SIZE] for at in range(0, len(data), STEP_SIZE)]
    found = [struct.unpack("<8Q", step) for step in steps]
    return [(words[0], words[1:7], words[7]) for words in found]


def finished(script: Script) -> bytes:
    """The memory of *script*, whose main thread does nothing."""
    return script.finish(Steps(), 0)


def at(image: bytes, address: int, size: int) -> bytes:
    """What a script finds at *address*."""
    offset = address - SCRIPT
    assert 0 <= offset <= len(image) - size
    return image[offset : offset + size]


@given(st.lists(calls, max_size=10))
def test_steps_are_what_was_asked_for(wanted: list[tuple[int, list[int], int]]) -> None:
    steps = Steps()
    for number, arguments, flags in wanted:
        steps.call(number, *arguments, flags=flags)
    expected = [
        (number, tuple(each & U64 for each in (*arguments, *[0] * (6 - len(arguments)))), flags)
        for number, arguments, flags in wanted
    ]
    assert decoded(bytes(steps.encoded)) == expected


def test_a_step_takes_no_more_than_six_arguments() -> None:
    with pytest.raises(struct.error):
        Steps().call(0, 1, 2, 3, 4, 5, 6, 7)


def test_steps_follow_one_another() -> None:
    first, second = Steps(), Steps()
    first.call(1, 10)
    second.call(2, 20)
    second.call(RETURN, 30)
    first += second
    assert [number for number, _, _ in decoded(bytes(first.encoded))] == [1, 2, RETURN]
    assert len(second.encoded) == 2 * STEP_SIZE


@given(pieces)
def test_what_is_placed_is_found_aligned_and_whole(wanted: list[tuple[bytes, int]]) -> None:
    script = Script()
    places = [(script.place(data, align), data, align) for data, align in wanted]
    image = finished(script)
    for address, data, align in places:
        assert address % align == 0
        assert at(image, address, len(data)) == data
    ends = [address + len(data) for address, data, _ in places]
    # Nothing overlaps, and the header is left alone.
    for begin, end in zip(
        [address for address, _, _ in places], [SCRIPT + 32, *ends], strict=False
    ):
        assert begin >= end


def test_texts_are_c_strings() -> None:
    script = Script()
    first, second = script.text("/usr/lib/libé.so"), script.text("")
    image = finished(script)
    assert at(image, first, 18) == "/usr/lib/libé.so".encode() + b"\0"
    assert at(image, second, 1) == b"\0"


def test_each_stack_is_a_page_of_its_own() -> None:
    script = Script()
    script.place(b"something before")
    tops = [script.stack() for _ in range(3)]
    after = script.place(b"\xff" * 100, 1)
    image = finished(script)
    assert [top % PAGE for top in tops] == [0, 0, 0]
    assert len({*tops}) == 3
    assert after >= max(tops)
    for top in tops:
        assert at(image, top - PAGE, PAGE) == bytes(PAGE)


@given(st.integers(0, 3 * PAGE), st.integers(1, 100))
def test_the_whole_is_full_pages_after_a_header(size: int, count: int) -> None:
    script, main = Script(), Steps()
    script.place(bytes(size))
    for number in range(count):
        main.call(number, flags=KEEP)
    image = script.finish(main, MAP)
    magic, length, begin, mm_map = struct.unpack_from("<8sQQQ", image)
    assert (magic, length, mm_map) == (b"cloche-1", len(image), MAP)
    assert len(image) % PAGE == 0
    # No page more than needed: 64 bytes of header, what was placed, the steps, less than a page.
    assert len(image) < 64 + size + 8 + count * STEP_SIZE + PAGE
    steps = decoded(at(image, begin, count * STEP_SIZE))
    assert [number for number, _, _ in steps] == [*range(count)]


def test_further_threads_have_steps_of_their_own() -> None:
    script, main, other = Script(), Steps(), Steps()
    other.call(RETURN, 7)
    begin = script.steps(other)
    main.call(SPAWN, 0, 0, 0, 0, 0, begin)
    image = script.finish(main, MAP)
    (main_begin,) = struct.unpack_from("<Q", image, 16)
    ((_, arguments, _),) = decoded(at(image, main_begin, STEP_SIZE))
    assert decoded(at(image, arguments[5], STEP_SIZE)) == [(RETURN, (7, 0, 0, 0, 0, 0), 0)]


def test_a_script_may_not_reach_into_the_memory() -> None:
    script = Script()
    script.place(bytes(DATA - 64))
    assert len(finished(script)) == DATA
    script.place(b"x", 1)
    with pytest.raises(ClocheError, match=f"freezing: the script takes {DATA + PAGE} bytes"):
        finished(script)


def registers(**changes: int) -> dict[str, int]:
    """Registers that all differ; *changes* to them."""
    values = {name: 0x1111_0000_0000_0000 + number for number, name in enumerate(REGISTERS)}
    small = {"cs": 0x33, "ss": 0x2B, "ds": 0, "es": 0, "fs": 0, "gs": 0}
    return values | {"orig_rax": U64} | small | changes


@given(words, words)
def test_outside_of_system_calls_nothing_changes(instruction: int, result: int) -> None:
    found = resumption(registers(rip=instruction, rax=result, orig_rax=U64))
    assert found == (instruction, result)


@pytest.mark.parametrize("error", RESTARTING.values(), ids=RESTARTING)
def test_an_interrupted_system_call_is_made_again(error: int) -> None:
    stopped = registers(rip=0x1000, rax=-error & U64, orig_rax=271)
    assert resumption(stopped) == (0x1000 - SYSCALL_SIZE, 271)


def test_a_call_that_the_kernel_cannot_make_again_was_interrupted() -> None:
    """What is left of its time is known to the thread that made it only."""
    stopped = registers(rip=0x1000, rax=-ERESTART_RESTARTBLOCK & U64, orig_rax=230)
    assert resumption(stopped) == (0x1000, -EINTR & U64)


@pytest.mark.parametrize("result", [0, 17, 513, -EAGAIN, -EFAULT, -515, -517], ids=str)
def test_a_call_that_is_done_keeps_its_result(result: int) -> None:
    stopped = registers(rip=0x1000, rax=result & U64, orig_rax=271)
    assert resumption(stopped) == (0x1000, result & U64)


@pytest.mark.parametrize("error", [*RESTARTING.values(), ERESTART_RESTARTBLOCK])
def test_such_a_value_outside_of_a_system_call_is_just_a_value(error: int) -> None:
    stopped = registers(rip=0x1000, rax=-error & U64, orig_rax=U64)
    assert resumption(stopped) == (0x1000, -error & U64)


# ---- the frame: struct rt_sigframe from its second word on, as x86-64 has it


class StackT(ctypes.Structure):
    """stack_t, <bits/types/stack_t.h>."""

    _fields_ = (("sp", ctypes.c_uint64), ("flags", ctypes.c_int32), ("size", ctypes.c_uint64))


class SigContext(ctypes.Structure):
    """struct sigcontext_64, arch/x86/include/uapi/asm/sigcontext.h."""

    _fields_ = (
        *((f"r{number}", ctypes.c_uint64) for number in range(8, 16)),
        *((name, ctypes.c_uint64) for name in ("di", "si", "bp", "bx", "dx", "ax", "cx", "sp")),
        *((name, ctypes.c_uint64) for name in ("ip", "flags")),
        *((name, ctypes.c_uint16) for name in ("cs", "gs", "fs", "ss")),
        *((name, ctypes.c_uint64) for name in ("err", "trapno", "oldmask", "cr2", "fpstate")),
        ("reserved", ctypes.c_uint64 * 8),
    )


class UContext(ctypes.Structure):
    """struct ucontext, include/uapi/asm-generic/ucontext.h."""

    _fields_ = (
        ("uc_flags", ctypes.c_uint64),
        ("uc_link", ctypes.c_uint64),
        ("stack", StackT),
        ("mcontext", SigContext),
        ("sigmask", ctypes.c_uint64),
    )


# Where the names of the frame are not those of struct user_regs_struct.
RENAMED = {"di": "rdi", "si": "rsi", "bp": "rbp", "bx": "rbx", "dx": "rdx", "ax": "rax"}
RENAMED |= {"cx": "rcx", "sp": "rsp", "ip": "rip", "flags": "eflags", "cs": "cs", "ss": "ss"}
RENAMED |= {f"r{number}": f"r{number}" for number in range(8, 16)}
XSAVE_SIZE, SOFTWARE_AT = 2696, 464
MAGIC1, MAGIC2 = 0x46505853, 0x46505845
FEATURES = 0x2E7


def xsave_area() -> bytes:
    """As ptrace(2) returns it: bytes that all mean something, XCR0 where software may write."""
    area = bytearray(number % 251 for number in range(XSAVE_SIZE))
    struct.pack_into("<Q40x", area, SOFTWARE_AT, FEATURES)
    return bytes(area)


def framed(stopped: dict[str, int], mask: int = 0x4_0000_0001) -> tuple[bytes, int, UContext]:
    """The image of a script with a frame for these registers, the frame's address and content."""
    script = Script()
    script.place(b"odd", 1)
    stack = bytes(StackT(0x7000_0000_0000, 2, 0x2000))
    address = signal_frame(script, stopped, mask=mask, stack=stack, extended=xsave_area())
    image = finished(script)
    return image, address, UContext.from_buffer_copy(at(image, address, ctypes.sizeof(UContext)))


@given(st.fixed_dictionaries({name: words for name in REGISTERS if name not in ("cs", "ss")}))
def test_the_frame_has_every_register(values: dict[str, int]) -> None:
    stopped = values | {"cs": 0x33, "ss": 0x2B, "orig_rax": U64}
    _, _, frame = framed(stopped)
    found = {name: getattr(frame.mcontext, field) for field, name in RENAMED.items()}
    assert found == {name: stopped[name] for name in RENAMED.values()}
    # The base addresses are set by system calls; a frame has no room for them.
    assert (frame.mcontext.fs, frame.mcontext.gs) == (0, 0)


def test_the_frame_goes_on_with_an_interrupted_call() -> None:
    _, _, frame = framed(registers(rip=0x1000, rax=-512 & U64, orig_rax=271))
    assert (frame.mcontext.ip, frame.mcontext.ax) == (0x1000 - SYSCALL_SIZE, 271)


def test_the_frame_has_mask_and_alternate_stack() -> None:
    _, address, frame = framed(registers(), mask=0xFFFF_FFFE_7FFB_FEFF)
    assert address % 16 == 0
    assert frame.sigmask == 0xFFFF_FFFE_7FFB_FEFF
    assert (frame.stack.sp, frame.stack.flags, frame.stack.size) == (0x7000_0000_0000, 2, 0x2000)
    # UC_FP_XSTATE: the floating point state is an XSAVE area; UC_STRICT_RESTORE_SS with its ss.
    assert (frame.uc_flags, frame.uc_link) == (7, 0)


def test_the_frame_has_the_whole_extended_state() -> None:
    image, _, frame = framed(registers())
    assert frame.mcontext.fpstate % 64 == 0
    area = at(image, frame.mcontext.fpstate, XSAVE_SIZE + 4)
    magic, extended, features, size = struct.unpack_from("<IIQI", area, SOFTWARE_AT)
    assert (magic, extended) == (MAGIC1, XSAVE_SIZE + 4)
    assert (features, size) == (FEATURES, XSAVE_SIZE)
    assert struct.unpack_from("<I", area, XSAVE_SIZE) == (MAGIC2,)
    before, after = slice(0, SOFTWARE_AT), slice(SOFTWARE_AT + 48, XSAVE_SIZE)
    assert (area[before], area[after]) == (xsave_area()[before], xsave_area()[after])
