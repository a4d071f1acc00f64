"""One running VM: QEMU's process, its monitor, its console and the agent's byte stream."""

from __future__ import annotations

import _socket  # socket proper imports selectors and enum, 5 ms
import os

from cloche.base.errors import BootError, ClocheError, GuestError, LaunchError
from cloche.base.files import read_text
from cloche.base.loop import READ, WRITE, Future, Loop, read_some
from cloche.base.quick import suppress
from cloche.vmm.argv import Machine, passed_name, qemu_argv
from cloche.vmm.launch import (
    FIRST_FD,
    NOT_SHUT_OFF,
    NOT_STARTED,
    host_never_overcommits,
    launch_qemu,
    pipe_with,
)
from cloche.wire import qmp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from cloche.vmm.argv import RootImage
    from cloche.vmm.console import Console
    from cloche.vmm.frozen import Frozen
    from cloche.vmm.jail import Jail
    from cloche.vmm.loopback import HostLoopback
    from cloche.vmm.shape import Shape

# By a user, or by a kernel without memory: SIGINT, SIGKILL, SIGTERM.
_KILLED = (-2, -9, -15)
# It takes 5 ms, or a thousand times as long on a host that has much else to do.
THAW_TIMEOUT_S = 15.0

# preload/ has an open(2) of a name below it answered with the descriptor of that number.
FD_FOLDER = "/cloche/fd"
# Descriptors in QEMU's table; the taps follow.
AGENT_FD, QMP_FD, CONSOLE_FD, INCOMING_FD, FIRST_TAP_FD = range(FIRST_FD, FIRST_FD + 5)


class Vm:
    """A VM from launch to death. Attach `on_agent` before the loop runs."""

    def __init__(self, loop: Loop, directory: str) -> None:
        self.loop = loop
        self.log = os.path.join(directory, "qemu.log")
        self.pid = 0
        self.argv: list[str] = []
        # Decides on the connections of QEMU's user-mode network; None: all may be made.
        self.guard: HostLoopback | None = None
        self.exited = Future()
        self.ready = Future()
        self.running = Future()
        self.on_agent: Callable[[bytes], None] = lambda data: None
        # What was queued for the agent has gone to QEMU.
        self.on_room: Callable[[], None] = lambda: None
        # The guest's console speaks of a panic.
        self.on_panic: Callable[[], None] = lambda: None
        # QEMU was started a second time, in another way; why.
        self.on_relaunch: Callable[[str], None] = lambda why: None
        self.console = _new_console()
        self.step = "starting QEMU"
        # What a thawed guest is to hear first is on its way to it already.
        self.is_greeted = False
        # It boots a kernel, instead of going on where its template was saved.
        self.is_booting = False
        # Why we have killed QEMU, where we have.
        self.killed_for: ClocheError | None = None
        self._qmp = qmp.Decoder()
        self._qmp_replies: list[Future] = []
        self._out = bytearray()
        self._otherwise: Callable[[], None] | None = None
        self._gave_up = ""
        self._agent: _socket.socket
        self._monitor: _socket.socket
        self._console: _socket.socket

    def launch(
        self,
        shape: Shape,
        *,
        share: str,
        taps: Sequence[int] = (),
        user_network: bool = False,
        images: Sequence[str] = (),
        disks: Sequence[tuple[int, bool]] = (),
        root_image: RootImage | None = None,
        parameters: Sequence[str] = (),
        boot: tuple[str, str, str] | None = None,
        memory_file: str = "",
        state: bytes | None = None,
        keep_writes: bool = False,
        files: Sequence[int] = (),
        jail: Jail | None = None,
    ) -> None:
        """Start QEMU: a boot of *boot* (kernel, initramfs, cmdline), or a restore of *state*.

        With *keep_writes* what the guest writes goes to the *memory_file*, as of a boot.
        *disks* are open block devices of the host, and whether each is only read. *files* are
        the descriptors of a FilesSlot, in place of a *share* that QEMU itself serves. In a *jail*
        QEMU has images and memory as descriptors, the memory to be read only.
        """
        ends = self._connect()
        kernel, initramfs, cmdline = boot or ("", "", "")
        if state is None:
            self.step = "booting the guest kernel"
            self.is_booting = True
            incoming = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            self._monitor.sendall(qmp.CAPABILITIES)
        else:
            self.step = "restoring the template"
            incoming = pipe_with(state)
            self._monitor.sendall(qmp.restore_commands(f"fd:{INCOMING_FD}"))
        fds = [*(end.fileno() for end in ends), incoming]
        tap_fds, disk_fds = _number(fds, taps), _number(fds, [fd for fd, _ in disks])
        files_fd, bulk_fd = _number(fds, files) or (-1, -1)
        ours: list[int] = []
        passed: Sequence[int] = ()
        if jail is not None:
            ours = _open_all([*images, memory_file] if memory_file else images)
            passed = _number(fds, ours)
            memory_file = memory_file and f"{FD_FOLDER}/{passed[-1]}"
            images = [passed_name(number) for number in passed[: len(images)]]
        argv = self.argv = qemu_argv(
            Machine(
                qemu=shape.qemu,
                variant=shape.variant,
                accel=shape.accel,
                cpus=shape.cpus,
                memory=shape.memory,
                agent_fd=AGENT_FD,
                qmp_fd=QMP_FD,
                console_fd=CONSOLE_FD,
                kernel=kernel,
                initramfs=initramfs,
                cmdline=cmdline,
                memory_file=memory_file,
                memory_shared=state is None or keep_writes,
                reserve=host_never_overcommits(),
                incoming=state is not None,
                share=share,
                tap_fds=tap_fds,
                user_network=user_network,
                images=images,
                disks=[(fd, read_only) for fd, (_, read_only) in zip(disk_fds, disks, strict=True)],
                root_image=root_image,
                parameters=parameters,
                files_fd=files_fd,
                bulk_fd=bulk_fd,
                passed=passed[: len(images)],
            )
        )
        # QEMU asks for huge pages for TCG's code, of which a small guest fills a few MiB only:
        # 4 MiB less memory a VM, no difference in time. With KVM they are for the guest's memory.
        self.pid = self._start(argv, fds, huge_pages=shape.accel == "kvm", jail=jail)
        _close([incoming, *ours])
        self._watch(ends)

    def thaw(
        self,
        frozen: Frozen,
        *,
        share: str,
        taps: Sequence[int],
        image: str = "",
        greeting: bytes = b"",
        otherwise: Callable[[Sequence[int]], None] | None,
        files: Sequence[int] = (),
        jail: Jail | None = None,
    ) -> None:
        """Have a frozen QEMU go on; should that fail, *otherwise* launches the VM in another way.

        That is given *taps* of its own, which are held until the VM runs. The frozen QEMU was
        stopped with its monitor greeted. *greeting* waits for the agent, who has been listening
        since before it was frozen (what is sent to a VM that is yet to be restored is lost).
        """
        ends = self._connect()
        self.step = "thawing QEMU"
        self._agent.sendall(greeting)
        self._monitor.sendall(qmp.command("cont"))
        fds, ours = self._thaw_descriptors(frozen, share, taps, image, files)
        held: list[int] = []
        try:
            held += [os.dup(tap) for tap in taps]
            number = str(FIRST_FD + len(ends) + len(fds) - 1)
            # The rest is for those who look at ps(1).
            argv = self.argv = [frozen.qemu, number, "-thawed", frozen.folder, "-share", share]
            fds = [*(end.fileno() for end in ends), *fds]
            program = frozen.program
            self.pid = self._start(argv, fds, huge_pages=False, program=program, jail=jail)
            self._watch(ends)
        except OSError:
            self._undo_launch()
            _close(held)
            raise
        finally:
            _close(ours)
        self.is_greeted = bool(greeting)
        self._qmp_replies.append(Future())  # it comes after the RESUME event
        if otherwise is not None:
            self._otherwise = lambda: otherwise(held)
        late = f"it did not go on within {THAW_TIMEOUT_S:.0f} s"
        timer = self.loop.call_later(THAW_TIMEOUT_S, lambda: self._give_thaw_up(late))
        self.running.on_done(lambda _: timer.cancel())
        self.running.on_done(lambda _: _close(held))

    def _start(
        self,
        argv: list[str],
        fds: Sequence[int],
        *,
        huge_pages: bool,
        program: str = "",
        jail: Jail | None = None,
    ) -> int:
        guard = self.guard
        restrict = guard.prepare() if guard is not None else None
        pid = launch_qemu(
            argv,
            fds,
            self.log,
            huge_pages=huge_pages,
            program=program,
            restrict=restrict,
            jail=jail,
        )
        if guard is not None:
            guard.started(pid)
        return pid

    def _undo_launch(self) -> None:
        """End a QEMU that cannot be watched: no descriptor is left, say."""
        if self.pid:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
        self.pid = 0

    @staticmethod
    def _thaw_descriptors(
        frozen: Frozen, share: str, taps: Sequence[int], image: str, files: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """What cloche-thaw finds behind the channels, the process last; those that are ours."""
        ours: list[int] = []
        try:
            if not files:
                ours.append(os.open(share, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            # Past the image's end QEMU reads zeros.
            ours.append(os.open(image or os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            memory, process = frozen.open()
            ours += [memory, process]
            slots, idle = frozen.network(taps)
        except OSError:
            _close(ours)
            raise
        return [*files, *ours[:-1], *slots, process], [*ours, *idle]

    def _give_thaw_up(self, why: str) -> None:
        """End a QEMU that does not come back; what was to be done otherwise is done then."""
        if self.is_replaceable:
            self._gave_up = why
            os.kill(self.pid, 9)

    def _connect(self) -> tuple[_socket.socket, ...]:
        """Make the channels; returns QEMU's ends, in the order of its descriptors."""
        self._agent, agent = _socket.socketpair()
        self._monitor, monitor = _socket.socketpair()
        self._console, console = _socket.socketpair()
        return agent, monitor, console

    def _watch(self, ends: tuple[_socket.socket, ...]) -> None:
        for end in ends:
            end.close()
        self._pidfd = os.pidfd_open(self.pid)
        self.loop.watch(self._pidfd, READ, self._on_exit)
        for end, handler in (
            (self._monitor, self._on_monitor),
            (self._console, self._on_console),
            (self._agent, self._on_agent),
        ):
            end.setblocking(False)
            self.loop.watch(end.fileno(), READ, handler)

    # ---- the agent's stream

    def send(self, data: bytes) -> None:
        """Queue *data* for the agent; nothing happens once QEMU is gone."""
        if self._agent.fileno() < 0:
            return
        waiting = bool(self._out)
        self._out += data
        if not waiting:
            self._flush()

    @property
    def backlog(self) -> int:
        """Bytes queued for the agent that QEMU has not taken yet."""
        return len(self._out)

    def _flush(self) -> None:
        try:
            sent = self._agent.send(self._out)
            del self._out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._out.clear()  # QEMU is gone; its exit is reported through the pidfd
        events = READ | WRITE if self._out else READ
        with suppress(OSError):
            self.loop.watch(self._agent.fileno(), events, self._on_agent)

    def _on_agent(self, events: int) -> None:
        if events & WRITE and self._out:
            self._flush()
            if not self._out:
                self.on_room()
        if events & ~WRITE:
            data = read_some(self._agent.fileno())
            if data == b"":
                self.loop.unwatch(self._agent.fileno())
            elif data:
                self.on_agent(data)

    # ---- monitor

    def command(self, name: str, arguments: dict[str, Any] | None = None) -> Future:
        """Send one QMP command; the future holds what it returns."""
        future = Future()
        self._qmp_replies.append(future)
        self._monitor.sendall(qmp.command(name, arguments))
        return future

    def _on_monitor(self, _: int) -> None:
        data = read_some(self._monitor.fileno())
        if data == b"":
            self.loop.unwatch(self._monitor.fileno())
        try:
            for message in self._qmp.feed(data or b""):
                self._on_message(message)
        except qmp.QmpError as error:
            self.kill(error)

    def _on_message(self, message: dict[str, Any]) -> None:
        event = message.get("event")
        if event == "RESUME":
            self.step = "waiting for the agent"
            self.running.set()
        elif "error" in message:
            refusal = f"QEMU refused: {message['error'].get('desc')}"
            if self.is_replaceable:
                self._give_thaw_up(refusal)
                return
            error = self.failure(refusal)
            if self.running.done and self._qmp_replies:
                self._qmp_replies.pop(0).fail(error)
            else:
                self.running.fail(error)
        elif "return" in message:
            if self.running.done and self._qmp_replies:
                self._qmp_replies.pop(0).set(message["return"])
            elif self.is_booting:
                self.running.set()  # a boot runs by itself; this answers qmp_capabilities

    # ---- console

    def _on_console(self, _: int) -> None:
        data = read_some(self._console.fileno())
        if data == b"":
            self.loop.unwatch(self._console.fileno())
            return
        self.console.add(data or b"")
        if self.console.has_panicked:
            self.on_panic()
        if not self.ready.done and self.console.is_ready:
            self.ready.set()

    # ---- the end

    @property
    def is_replaceable(self) -> bool:
        """Whether another QEMU takes its place if it does not go on."""
        return self._otherwise is not None and not self.running.done

    def kill(self, why: ClocheError | None = None) -> None:
        """End QEMU at once; `exited` completes when it is gone. Its end is explained by *why*."""
        self._otherwise = None
        if self.killed_for is None:
            self.killed_for = why or ClocheError("VM: ended, for it was not needed any longer")
        if self.pid and not self.exited.done:
            with suppress(ProcessLookupError):
                os.kill(self.pid, 9)

    def _on_exit(self, _: int) -> None:
        self.loop.unwatch(self._pidfd)
        os.close(self._pidfd)
        # What the guest said last is still in the sockets: hand it on before the end is told.
        self._on_console(READ)
        while data := read_some(self._agent.fileno()):
            self.on_agent(data)
        for end in (self._monitor, self._console, self._agent):
            self.loop.unwatch(end.fileno())
            end.close()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        otherwise = self._otherwise if status != NOT_SHUT_OFF else None
        if otherwise is not None and not self.running.done:
            self._start_otherwise(otherwise, self._gave_up or _describe(status))
            return
        for future in (self.running, self.ready, *self._qmp_replies):
            if not future.done:
                future.fail(self._end(status))
        self.exited.set(status)

    def _start_otherwise(self, otherwise: Callable[[], None], cause: str) -> None:
        """The thaw came to nothing: nobody has spoken with the guest yet, so another will do."""
        self._otherwise = None
        why = f"QEMU could not be thawed ({cause}; {self.last_words()})"
        self._qmp, self._qmp_replies = qmp.Decoder(), []
        self.pid = 0
        self.is_greeted = False
        try:
            otherwise()
        except (ClocheError, OSError) as error:
            for future in (self.running, self.ready):
                future.fail(error)
            self.exited.set(NOT_STARTED)
            return
        self.on_relaunch(why)

    def _end(self, status: int) -> ClocheError:
        """What an end of QEMU that nobody waited for means."""
        if self.killed_for is not None:
            return self.killed_for
        if status not in (NOT_STARTED, NOT_SHUT_OFF):
            failure = self.failure(f"QEMU ended with {_describe(status)}")
            failure.blames_machine &= status != -9  # that was somebody's will
            return failure
        lines = (read_text(self.log) or "").strip().splitlines()
        return LaunchError(f"VM: QEMU was not executed: {lines[-1] if lines else '(silent)'}")

    def failure(self, cause: str) -> BootError:
        """An error that tells how far the VM came, and what console and QEMU said last."""
        last, words = self.console.last_milestone, self.last_words()
        failure = BootError(
            f"VM: {self.step}: {cause}; last boot milestone: {last}; {words}",
            hint="`cloche setup --check` tells whether kernel and template fit",
        )
        failure.blames_machine = self.is_booting and not self.console.has_milestone
        return failure

    def has_crashed(self) -> bool:
        """Whether damage may have brought its end about: by itself, or for what its guest did."""
        if self.killed_for is not None:
            return isinstance(self.killed_for, GuestError)
        return self.running.done and self.exited.value not in _KILLED

    def death(self) -> ClocheError:
        """Why a VM that was up has ended."""
        if self.killed_for is not None:
            return self.killed_for
        status = int(self.exited.value)
        if status == 0:
            cause = "the guest's kernel crashed, restarted or switched itself off"
        else:
            cause = f"QEMU ended with {_describe(status)}"
        hint = "did the host run out of memory? dmesg tells" if status == -9 else ""
        return ClocheError(f"VM: {cause}; {self.last_words()}", hint=hint)

    def last_words(self) -> str:
        """What console and QEMU said last, on one line."""
        return self.console.last_words(self.log)


def _new_console() -> Console:
    from cloche.vmm.console import Console  # whoever only forks a supervisor needs none

    return Console()


def _number(fds: list[int], more: Sequence[int]) -> Sequence[int]:
    """Add *more* to QEMU's descriptors; returns their numbers in its table."""
    first = FIRST_FD + len(fds)
    fds += more
    return range(first, first + len(more))


def _open_all(paths: Sequence[str]) -> list[int]:
    """Open files for reading; OSError, with none of them left open."""
    fds: list[int] = []
    try:
        fds += [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]
    except OSError:
        _close(fds)
        raise
    return fds


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _describe(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"
