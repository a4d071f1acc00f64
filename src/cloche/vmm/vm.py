"""One running VM: QEMU's process, its monitor, its console and the agent's byte stream."""

from __future__ import annotations

import _socket  # socket proper imports selectors and enum, 5 ms
import os

from cloche.base.errors import BootError, ClocheError, GuestError
from cloche.base.loop import READ, WRITE, Future, Loop, read_some
from cloche.base.quick import suppress
from cloche.vmm.launch import (
    FIRST_FD,
    NOT_SHUT_OFF,
    NOT_STARTED,
    launch_qemu,
)
from cloche.wire import qmp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from cloche.vmm.console import Console, QemuLog
    from cloche.vmm.frozen import Frozen
    from cloche.vmm.jail import Jail
    from cloche.vmm.loopback import HostLoopback

# By a user, or by a kernel without memory: SIGINT, SIGKILL, SIGTERM.
_KILLED = (-2, -9, -15)
# It takes 5 ms, or a thousand times as long on a host that has much else to do.
THAW_TIMEOUT_S = 15.0

# Descriptors in QEMU's table; the taps follow.
AGENT_FD, QMP_FD, CONSOLE_FD, INCOMING_FD, FIRST_TAP_FD = range(FIRST_FD, FIRST_FD + 5)


class Vm:
    """A VM from launch to death. Attach `on_agent` before the loop runs."""

    def __init__(self, loop: Loop, directory: str) -> None:
        self.loop = loop
        self._directory = directory
        # What QEMU itself says; None until it is started.
        self.log: QemuLog | None = None
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
        self.monitor: _socket.socket
        self._console: _socket.socket

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
        ends = self.connect()
        self.step = "thawing QEMU"
        self._agent.sendall(greeting)
        self.monitor.sendall(qmp.command("cont"))
        fds, ours = frozen.descriptors(share, taps, image, files)
        held: list[int] = []
        try:
            held += [os.dup(tap) for tap in taps]
            number = str(FIRST_FD + len(ends) + len(fds) - 1)
            # The rest is for those who look at ps(1).
            argv = self.argv = [frozen.qemu, number, "-thawed", frozen.folder, "-share", share]
            fds = [*(end.fileno() for end in ends), *fds]
            program = frozen.program
            self.pid = self.start(argv, fds, huge_pages=False, program=program, jail=jail)
            self.watch(ends)
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

    def start(
        self,
        argv: list[str],
        fds: Sequence[int],
        *,
        huge_pages: bool,
        program: str = "",
        jail: Jail | None = None,
    ) -> int:
        if self.log is None:
            from cloche.vmm.console import QemuLog

            self.log = QemuLog(os.path.join(self._directory, "qemu.log"))
        guard = self.guard
        restrict = guard.prepare() if guard is not None else None
        pid = launch_qemu(
            argv,
            fds,
            self.log.fd,
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

    def _give_thaw_up(self, why: str) -> None:
        """End a QEMU that does not come back; what was to be done otherwise is done then."""
        if self.is_replaceable:
            self._gave_up = why
            os.kill(self.pid, 9)

    def connect(self) -> tuple[_socket.socket, ...]:
        """Make the channels; returns QEMU's ends, in the order of its descriptors."""
        self._agent, agent = _socket.socketpair()
        self.monitor, monitor = _socket.socketpair()
        self._console, console = _socket.socketpair()
        return agent, monitor, console

    def watch(self, ends: tuple[_socket.socket, ...]) -> None:
        for end in ends:
            end.close()
        self._pidfd = os.pidfd_open(self.pid)
        self.loop.watch(self._pidfd, READ, self._on_exit)
        for end, handler in (
            (self.monitor, self._on_monitor),
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
        self.monitor.sendall(qmp.command(name, arguments))
        return future

    def _on_monitor(self, _: int) -> None:
        data = read_some(self.monitor.fileno())
        if data == b"":
            self.loop.unwatch(self.monitor.fileno())
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
        for end in (self.monitor, self._console, self._agent):
            self.loop.unwatch(end.fileno())
            end.close()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        otherwise = self._otherwise if status != NOT_SHUT_OFF else None
        if otherwise is not None and not self.running.done:
            from cloche.vmm.death import described

            self._start_otherwise(otherwise, self._gave_up or described(status))
            return
        if self.killed_for is None and self.log is not None:
            self.log.keep()
        for future in (self.running, self.ready, *self._qmp_replies):
            if not future.done:
                future.fail(self.killed_for or self._end(status))
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
        from cloche.vmm.death import end

        return end(self, status)

    def failure(self, cause: str) -> BootError:
        """An error that tells how far the VM came, and what console and QEMU said last."""
        from cloche.vmm.death import failure

        return failure(self, cause)

    def has_crashed(self) -> bool:
        """Whether damage may have brought its end about: by itself, or for what its guest did."""
        if self.killed_for is not None:
            return isinstance(self.killed_for, GuestError)
        return self.running.done and self.exited.value not in _KILLED

    def last_words(self) -> str:
        """What console and QEMU said last, on one line."""
        return self.console.last_words(self.log.text if self.log else "")


def _new_console() -> Console:
    from cloche.vmm.console import Console  # whoever only forks a supervisor needs none

    return Console()


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
