"""Freezing QEMU: its process, as it stands, becomes a file that cloche-thaw turns into it again.

What stands there is in docs/frozen.md. QEMU must be idle, with its guest stopped.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, NamedTuple

from cloche.base.errors import ClocheError
from cloche.vmm import preload, ptrace
from cloche.vmm.regions import Process, Region
from cloche.vmm.script import (
    DATA,
    FROM_VDSO,
    KEEP,
    KEPT_FIFTH,
    KEPT_FIRST,
    RETURN,
    SPAWN,
    Script,
    Steps,
    signal_frame,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import BinaryIO

    from cloche.vmm.ptrace import Thread

# System calls of x86-64.
_OPEN, _CLOSE, _MMAP, _BRK, _RT_SIGACTION, _MREMAP, _MADVISE, _FCNTL = 2, 3, 9, 12, 13, 25, 28, 72
_SIGALTSTACK, _PRCTL, _ARCH_PRCTL, _SET_TID_ADDRESS = 131, 157, 158, 218
_SET_ROBUST_LIST, _SIGNALFD4, _EVENTFD2, _EPOLL_CREATE1, _DUP3 = 273, 289, 290, 291, 292
_PERSONALITY, _SECCOMP, _RSEQ, _CLOSE_RANGE = 135, 317, 334, 436

_MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS = 0x2, 0x10, 0x20
_MAP_NORESERVE, _MAP_FIXED_NOREPLACE = 0x4000, 0x100000
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_F_SETFL = 4
_ARCH_SET_FS = 0x1002
_PR_SET_NAME, _PR_SET_TIMERSLACK, _PR_SET_MM, _PR_GET_TID_ADDRESS = 15, 29, 35, 40
_PR_SET_MM_MAP, _MM_MAP_WORDS = 14, 13
# VmFlags of smaps → what madvise(2) is told for them.
_ADVICE = {"dc": 10, "mg": 12, "dd": 16}  # MADV_DONTFORK, MADV_MERGEABLE, MADV_DONTDUMP
# In place of a descriptor: none, and the one that was opened last.
_NO_FD, _KEPT_FD = -1, -2
# Libraries with a random generator in memory that cloche's preload does not replace.
_STATEFUL = ("libgcrypt",)
_SECCOMP_SET_MODE_FILTER = 1
# As pthread_create(3) has it: VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, PARENT_SETTID,
# CHILD_CLEARTID.
_CLONE_THREAD = 0x3D0F00

# The kernel lets the first thread's stack grow; what is mapped in its place does not.
_STACK_SIZE = 8 << 20
_SIGNALS = [number for number in range(1, 65) if number not in (9, 19)]  # SIGKILL, SIGSTOP
_SIGACTION_SIZE, _STACK_T_SIZE, _SIGSET_SIZE = 32, 24, 8
# While the script runs, its own descriptors are where none of QEMU's is.
_ASIDE = 200
_FIRST_FD = 3
_LAST_FD = (1 << 32) - 1


def freeze(pid: int, path: str, slots: Mapping[int, int], *, memory: str) -> list[str]:
    """Write the process *pid* to the file *path*; returns the files that it maps besides.

    *slots* are the descriptors to be handed to a thaw: QEMU's number, and the number at which
    cloche-thaw finds it; the image follows them. *memory* is the file of the guest's memory, one
    of the slots, which every thaw maps copy-on-write. ClocheError when QEMU has something that
    cannot be brought back, OSError when this host does not let it be looked at.
    """
    with (
        ptrace.stopped(pid) as threads,
        Process(pid) as process,
        open(path, "wb", opener=_private) as image,
    ):
        return _Freezer(process, threads, slots, memory).write(image)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class _ThreadState(NamedTuple):
    """How a thread goes on: its own steps, its TLS, the address where its number is kept."""

    steps: Steps
    tls: int
    tid_address: int


class _Freezer:
    """Writes the script of one process."""

    def __init__(
        self, process: Process, threads: list[Thread], slots: Mapping[int, int], memory: str
    ) -> None:
        self.process = process
        self.threads = threads
        self.slots = slots
        self.memory = memory
        self.image_fd = max(slots.values()) + 1
        self.memory_fd = _ASIDE + slots[process.descriptor_of(memory)]
        self.regions = process.regions()
        self.vdso = next(region for region in self.regions if region.path == "[vdso]")
        code = process.read(self.vdso.start, self.vdso.size)
        self.syscall = ptrace.find_syscall(code, self.vdso.start)
        self.script = Script()

    def write(self, image: BinaryIO) -> list[str]:
        """Write script and memory; returns the files that are mapped, less the guest's memory."""
        self._refuse_unknown()
        main, *others = [self._thread(thread) for thread in self.threads]
        mm_map = self._mm_map()
        actions = self._signal_actions()
        steps = self._descriptors_aside()
        steps += self._vdso()
        steps += self._files()
        steps += self._anonymous()
        steps += self._written(image)
        steps += self._advice()
        steps.call(_PRCTL, _PR_SET_MM, _PR_SET_MM_MAP, mm_map, 8 * _MM_MAP_WORDS)
        steps += self._descriptors()
        steps += actions
        steps.call(_PRCTL, _PR_SET_TIMERSLACK, int(self._proc("timerslack_ns")))
        steps.call(_PERSONALITY, int(self._proc("personality"), 16))
        steps += self._seccomp()
        for state in others:
            begin = self.script.steps(state.steps)
            where = (self.script.stack(), state.tid_address, state.tid_address)
            steps.call(SPAWN, _CLONE_THREAD, *where, state.tls, begin)
        steps.call(_ARCH_PRCTL, _ARCH_SET_FS, main.tls)
        steps.call(_SET_TID_ADDRESS, main.tid_address)
        steps += main.steps
        script = self.script.finish(steps, mm_map)
        image.seek(0)
        image.write(script)
        paths = {region.path for region in self.regions if region.is_of_file}
        return sorted(paths - {self.memory})

    def _proc(self, name: str) -> str:
        with open(f"/proc/{self.process.pid}/{name}", encoding="utf-8") as file:
            return file.read()

    def _refuse_unknown(self) -> None:
        """ClocheError for what no script brings back, or must not be the same in all VMs."""
        for region in self.regions:
            known = region.is_of_file or region.is_anonymous or region.is_kernels_own
            if not known and region.path != "[vsyscall]":
                raise ClocheError(f"freezing: QEMU maps {region.path}")
            if any(name in region.path for name in _STATEFUL):
                raise ClocheError(f"freezing: QEMU draws random numbers from {region.path}")
        if self._proc("timers"):
            raise ClocheError("freezing: QEMU has a POSIX timer")
        if not any(_replaces_random(region.path) for region in self.regions):
            raise ClocheError(
                f"freezing: QEMU runs without {preload.NAME}, so all VMs would draw the same "
                "random numbers",
                hint="`make agent` builds it",
            )

    # ---- threads

    def _call(self, thread: Thread, number: int, *arguments: int) -> int:
        result = thread.call(self.syscall, number, *arguments)
        if result < 0:
            raise OSError(-result, os.strerror(-result), f"system call {number} of QEMU")
        return result

    def _asked(self, thread: Thread, size: int, number: int, *arguments: int | None) -> bytes:
        """What a system call of the thread writes to the address that stands as None."""
        scratch = (thread.registers()["rsp"] - 4096) & ~63  # below what it uses
        filled = [scratch if argument is None else argument for argument in arguments]
        self._call(thread, number, *filled)
        return self.process.read(scratch, size)

    def _thread(self, thread: Thread) -> _ThreadState:
        registers = thread.registers()
        frame = signal_frame(
            self.script,
            registers,
            mask=thread.signal_mask(),
            stack=self._asked(thread, _STACK_T_SIZE, _SIGALTSTACK, 0, None),
            extended=thread.extended_state(),
        )
        steps = Steps()
        address, size, signature = thread.rseq()
        if address:
            steps.call(_RSEQ, address, size, 0, signature)
        steps.call(_SET_ROBUST_LIST, *thread.robust_list())
        with open(f"/proc/{self.process.pid}/task/{thread.tid}/comm", encoding="utf-8") as file:
            steps.call(_PRCTL, _PR_SET_NAME, self.script.text(file.read().rstrip("\n")))
        steps.call(RETURN, frame)
        tid_address = self._asked(thread, 8, _PRCTL, _PR_GET_TID_ADDRESS, None)
        return _ThreadState(steps, registers["fs_base"], int.from_bytes(tid_address, "little"))

    def _signal_actions(self) -> Steps:
        steps = Steps()
        for number in _SIGNALS:
            arguments = (_RT_SIGACTION, number, 0, None, _SIGSET_SIZE)
            action = self._asked(self.threads[0], _SIGACTION_SIZE, *arguments)
            steps.call(_RT_SIGACTION, number, self.script.place(action), 0, _SIGSET_SIZE)
        return steps

    def _seccomp(self) -> Steps:
        """The last thing before there are threads: all inherit it."""
        steps = Steps()
        for program in self.threads[0].seccomp_filters():
            length = len(program) // 8
            fprog = struct.pack("<HxxxxxxQ", length, self.script.place(program))
            steps.call(_SECCOMP, _SECCOMP_SET_MODE_FILTER, 0, self.script.place(fprog))
        return steps

    # ---- memory

    def _mm_map(self) -> int:
        """Place a struct prctl_mm_map (prctl(2)) for QEMU's program break, and the rest of it.

        malloc(3) takes the break for its own: where that is another one it ruins its heap.
        """
        words = self._proc("stat").rpartition(")")[2].split()  # from the 3rd on
        start_code, end_code, start_stack = (int(word) for word in words[23:26])
        start_data, end_data, start_brk = (int(word) for word in words[42:45])
        end_brk = self._call(self.threads[0], _BRK, 0)
        code = (start_code, end_code, start_data, end_data, start_brk, end_brk, start_stack)
        # The arguments are filled in by cloche-thaw; no auxiliary vector, no other executable.
        return self.script.place(struct.pack("<7Q4QQIi", *code, 0, 0, 0, 0, 0, 0, -1))

    def _advice(self) -> Steps:
        steps = Steps()
        for region in self.regions:
            for flag, advice in _ADVICE.items():
                if flag in region.flags and not region.is_kernels_own:
                    steps.call(_MADVISE, region.start, region.size, advice)
        return steps

    def _vdso(self) -> Steps:
        """The C library knows where functions of the vDSO are: it has to be there again."""
        steps = Steps()
        how = _MREMAP_MAYMOVE | _MREMAP_FIXED
        for region in self.regions:
            if region.is_kernels_own:
                move = (region.start - self.vdso.start, region.size, region.size, how, region.start)
                steps.call(_MREMAP, *move, flags=FROM_VDSO)
        return steps

    def _files(self) -> Steps:
        """Map what comes from files, one file after the other."""
        steps = Steps()
        by_path: dict[str, list[Region]] = {}
        for region in self.regions:
            if region.is_of_file:
                by_path.setdefault(region.path, []).append(region)
        for path, regions in by_path.items():
            if path.endswith(" (deleted)"):
                raise ClocheError(f"freezing: QEMU maps {path}")
            if path == self.memory:
                for region in regions:
                    _map(steps, region, self.memory_fd, region.offset)
                continue
            steps.call(_OPEN, self.script.text(path), os.O_RDONLY | os.O_CLOEXEC, flags=KEEP)
            for region in regions:
                if region.is_shared:
                    raise ClocheError(f"freezing: QEMU shares memory with {path}")
                _map(steps, region, _KEPT_FD, region.offset)
            steps.call(_CLOSE, 0, flags=KEPT_FIRST)
        return steps

    def _anonymous(self) -> Steps:
        steps = Steps()
        for region in self.regions:
            if not region.is_anonymous:
                continue
            if region.is_shared:
                raise ClocheError("freezing: QEMU has shared memory without a file")
            if region.path == "[stack]":
                region.start -= max(0, _STACK_SIZE - region.size)
                region.flags.append("nr")
            _map(steps, region, _NO_FD, 0)
        return steps

    def _written(self, image: BinaryIO) -> Steps:
        """Map what was written from the image, over what is there already; write that there."""
        steps = Steps()
        offset = image.seek(DATA)
        how = _MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE
        for region in self.regions:
            if region.is_shared or not (region.is_of_file or region.is_anonymous):
                continue
            for address, size in self.process.written(region):
                image.write(self.process.read(address, size))
                source = (_ASIDE + self.image_fd, offset)
                steps.call(_MMAP, address, size, region.protection, how, *source)
                offset += size
        return steps

    # ---- descriptors

    def _descriptors_aside(self) -> Steps:
        steps = Steps()
        for number in [*self.slots.values(), self.image_fd]:
            steps.call(_DUP3, number, _ASIDE + number, os.O_CLOEXEC)
        steps.call(_CLOSE_RANGE, _FIRST_FD, _ASIDE - 1, 0)
        return steps

    def _descriptors(self) -> Steps:
        """Open what QEMU has open, under the same numbers; 0, 1 and 2 are there."""
        steps = Steps()
        folder = f"/proc/{self.process.pid}/fdinfo"
        for number, target in sorted(self.process.descriptors().items()):
            if number < _FIRST_FD:
                continue
            if number >= _ASIDE:
                raise ClocheError(f"freezing: QEMU has {number} descriptors open")
            with open(f"{folder}/{number}", encoding="ascii") as file:
                info = dict(line.split(":", 1) for line in file.read().splitlines() if ":" in line)
            flags = int(info["flags"], 8)
            if number in self.slots:
                steps.call(_DUP3, _ASIDE + self.slots[number], number, flags & os.O_CLOEXEC)
                steps.call(_FCNTL, number, _F_SETFL, flags & os.O_NONBLOCK)
                continue
            self._open(steps, target, info, flags)
            # Whatever number it got: aside, and from there to its own.
            steps.call(_DUP3, 0, 2 * _ASIDE, os.O_CLOEXEC, flags=KEPT_FIRST)
            steps.call(_CLOSE, 0, flags=KEPT_FIRST)
            steps.call(_DUP3, 2 * _ASIDE, number, flags & os.O_CLOEXEC)
        steps.call(_CLOSE_RANGE, _ASIDE, _LAST_FD, 0)
        return steps

    def _open(self, steps: Steps, target: str, info: dict[str, str], flags: int) -> None:
        """Open something like *target*, of which /proc/PID/fdinfo tells *info*; proc(5)."""
        kept = flags & (os.O_CLOEXEC | os.O_NONBLOCK)
        if target == "anon_inode:[eventfd]":
            steps.call(_EVENTFD2, int(info["eventfd-count"], 16), kept, flags=KEEP)
        elif target == "anon_inode:[signalfd]":
            mask = self.script.place(struct.pack("<Q", int(info["sigmask"], 16)))
            steps.call(_SIGNALFD4, -1, mask, _SIGSET_SIZE, kept, flags=KEEP)
        elif target == "anon_inode:[eventpoll]" and "tfd" not in info:
            steps.call(_EPOLL_CREATE1, flags & os.O_CLOEXEC, flags=KEEP)
        elif target == os.devnull:
            access = flags & os.O_ACCMODE
            steps.call(_OPEN, self.script.text(target), access | kept, flags=KEEP)
        else:
            raise ClocheError(f"freezing: QEMU has {target} open")


def _replaces_random(path: str) -> bool:
    """Whether that is cloche's preload, as it is since it has a random generator of its own."""
    if os.path.basename(path) != preload.NAME:
        return False
    with open(path, "rb") as file:
        return b"gnutls_rnd" in file.read()


def _map(steps: Steps, region: Region, fd: int, offset: int) -> None:
    """Map *region* anew, where nothing is yet."""
    how = _MAP_PRIVATE | _MAP_FIXED_NOREPLACE
    if region.is_unreserved:
        how |= _MAP_NORESERVE
    if fd == _NO_FD:
        how |= _MAP_ANONYMOUS
    flags = KEPT_FIFTH if fd == _KEPT_FD else 0
    steps.call(_MMAP, region.start, region.size, region.protection, how, fd, offset, flags=flags)
