"""Whether the guest still answers.

The agent is asked (`ping`) every second while a request waits for its answer, and every ten seconds
otherwise. Only time counts in which an answer could have come: in which this process ran when it
wanted to, and QEMU's threads did not wait for a processor or a disk. A guest that has been silent
for long enough is known as such: whoever waits for it, or asks it something, gets that error, until
it answers again.
"""

from __future__ import annotations

from time import monotonic

from cloche.base.errors import ClocheError, GuestError
from cloche.base.loop import Future

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cloche.base.cputime import CpuTime
    from cloche.base.loop import Loop, Timer
    from cloche.heart.agent import Agent
    from cloche.heart.files import Files
    from cloche.vmm.vm import Vm

TICK_S = 1.0
IDLE_S = 10.0
# A tick that comes later than this says something about us, and nothing about the guest.
LATE_S = 0.5
# How long is silent. The agent, scheduled in real time, answers in 10 ms even under a fork bomb.
SILENT_S = 10.0
# The same where there is no hope: QEMU is stopped by a signal, or the kernel says it has panicked.
HOPELESS_S = 3.0
# The same while the guest boots, or looks through the disk with its root.
BOOT_S = 90.0
# However little of the time was the guest's own: so much longer is silent in any case.
PATIENCE_S = 20.0
QUERY = "query-status"
# What may wait for files: opens them, or wants something of programs that do.
OF_FILES = ("exec", "start", "freeze", "mount")


class SilentError(GuestError):
    """The guest does not answer."""


class FilesError(SilentError):
    """Whoever serves the guest's files does not answer it."""


class Pulse:
    """The liveness of one guest."""

    def __init__(
        self, loop: Loop, vm: Vm, agent: Agent, container_id: str, files: Files | None = None
    ) -> None:
        self.silent: SilentError | None = None
        # The guest answers, but what serves its files hangs.
        self.hung: FilesError | None = None
        # QEMU was stopped by a signal when the guest fell silent.
        self.was_stopped = False
        # Until the container exists: what the guest does then may take its time.
        self.is_slow = False
        self._loop = loop
        self._vm = vm
        self._agent = agent
        self._id = container_id
        self._files = files
        self._hung_s = self._hung_for = 0.0
        # Why there can be no container any more, until there is one.
        self._lost: BaseException | None = None
        self._is_up = False
        # Called with the reason when the files of a container that is there are no longer served.
        self.on_files_lost: Callable[[str], object] = lambda text: None
        # Whether they wait for files, too.
        self._guards: dict[Future, bool] = {}
        self._cpu_time: CpuTime | None = None
        self._timer: Timer | None = None
        self._last = 0.0
        # As many replies as had come at the last tick, and at the last of the slow ones.
        self._heard = self._heard_idle = 0
        self._ping: Future | None = None
        self._status: Future | None = None
        self._restart()
        agent.on_asked = self._begin
        agent.on_all_answered = self._answered
        vm.on_panic = self.check
        if files is not None:
            files.ended.on_done(lambda ended: self._files_ended(ended.error))
        self._begin()

    def keep(self) -> None:
        """From now on ask regularly, whether or not anybody else does."""
        self.is_slow = False
        self._is_up = True
        if self._lost is not None:
            self._files_ended(self._lost)
        self._loop.call_later(IDLE_S, self._idle)

    def check(self) -> None:
        """Ask now."""
        if self._ping is None and self._agent.broken is None and self._vm.running.done:
            self._ping = self._agent.call("ping")
            self._ping.on_done(self._ponged)

    def require(self) -> None:
        """SilentError where the guest is silent, or can have no file."""
        if known := self.silent or self.hung:
            raise known

    def ask(
        self,
        op: str,
        fields: dict[str, Any],
        late: Callable[[Any], object] = lambda _: None,
    ) -> Future:
        """As Agent.call; SilentError where the guest is silent.

        *late* is called with an answer that comes all the same, after that.
        """
        of_files = op in OF_FILES
        if known := self.silent or (self.hung if of_files else None):
            future = Future()
            future.fail(known)
            return future
        return self.guard(self._agent.call(op, fields), late, of_files=of_files)

    def guard(
        self,
        work: Future,
        late: Callable[[Any], object] = lambda _: None,
        *,
        of_files: bool = False,
    ) -> Future:
        """As *work*, but SilentError once the guest is known to be silent; *late* as of `ask`.

        *of_files*: it may wait for files, too.
        """
        if work.done:
            return work
        guarded = Future()

        def done(_: Future) -> None:
            self._guards.pop(guarded, None)
            if not guarded.done and work.error is not None:
                guarded.fail(work.error)
            elif not guarded.done:
                guarded.set(work.value)
            elif work.error is None:
                late(work.value)

        work.on_done(done)
        if known := self.silent or self._lost:
            guarded.fail(known)
        else:
            self._guards[guarded] = of_files
        return guarded

    # ---- the beat

    def _idle(self) -> None:
        if self._vm.exited.done:
            return
        if self._agent.replies == self._heard_idle:
            self.check()
        self._heard_idle = self._agent.replies
        self._loop.call_later(IDLE_S, self._idle)

    def _begin(self) -> None:
        """There is something to wait for."""
        if self._timer is None:
            self._last = monotonic()
            self._timer = self._loop.call_later(TICK_S, self._tick)

    def _answered(self) -> None:
        """There is nothing to wait for any longer."""
        self._restart()
        self.silent = self.hung = None
        self._hung_s = self._hung_for = 0.0
        if self._timer is not None and self._vm.running.done:
            self._timer.cancel()
            self._timer = None

    def _restart(self) -> None:
        self._counted = self._passed = self._used = 0.0
        self._status = None

    def _ponged(self, ping: Future) -> None:
        self._ping = None
        if ping.error is None:
            self._restart()
            self.silent = None

    def _tick(self) -> None:
        self._timer = None
        waits = self._agent.is_asked or not self._vm.running.done
        if self._vm.exited.done or not waits:
            self._restart()
            return
        now = monotonic()
        elapsed, self._last = now - self._last, now
        kept = self._cpu().look(self._vm.pid, elapsed)
        if self._heard != self._agent.replies or self._vm.is_replaceable:
            self._heard = self._agent.replies
            self._restart()
            self.silent = None
        elif elapsed <= TICK_S + LATE_S:
            self._passed += elapsed
            self._counted += elapsed - kept
            self._used += self._cpu().used
        if self._is_greeted:
            self.check()
        self._judge()
        self._judge_files(elapsed)
        delay = TICK_S if self.silent is None else IDLE_S
        self._timer = self._loop.call_later(delay, self._tick)

    def _cpu(self) -> CpuTime:
        if self._cpu_time is None:  # most guests answer before the first tick
            from cloche.base.cputime import CpuTime

            self._cpu_time = CpuTime()
        return self._cpu_time

    @property
    def _is_greeted(self) -> bool:
        """Whether the agent is up: nobody is there to be asked while the guest boots."""
        return self._agent.replies > 0

    def _judge(self) -> None:
        limit = (
            BOOT_S if (self._vm.is_booting and not self._is_greeted) or self.is_slow else SILENT_S
        )
        if self._cpu().is_stopped or self._vm.console.has_panicked:
            limit = HOPELESS_S
        if self.silent is not None:
            return
        if self._status is None and self._counted > limit / 2 and self._vm.running.done:
            self._status = self._vm.command(QUERY)
        if self._counted >= limit or self._passed >= limit + PATIENCE_S:
            self._fall_silent()

    def _fall_silent(self) -> None:
        self.was_stopped = self._cpu().is_stopped
        name, why = self._id, f"no answer for {self._passed:.0f} s: {self._cause()}"
        self.silent = SilentError(
            f"container {name}: its guest is silent: {why}",
            hint=self._way_out(),
        )
        self._fail_guards(self.silent)
        if self._vm.console.has_panicked and not self.was_stopped:
            words = self._vm.last_words()
            self._vm.kill(
                ClocheError(f"VM: the guest's kernel panicked and did not restart; {words}")
            )

    def _way_out(self) -> str:
        name = self._id
        return f"`cloche kill {name} KILL` and `cloche delete --force {name}` end it in any case"

    def _fail_guards(self, error: BaseException, *, of_files: bool = False) -> None:
        """Tell all that wait, or those that may wait for files."""
        failed = [
            guard
            for guard, waits_for_files in self._guards.items()
            if waits_for_files or not of_files
        ]
        for guard in failed:
            del self._guards[guard]
            guard.fail(error)

    # ---- its files

    def explained(self, error: ClocheError) -> ClocheError:
        """*error*, which the guest reports, with the reason if it has no files any more."""
        return self._files.explains(error) if self._files is not None else error

    def _files_ended(self, error: BaseException | None) -> None:
        """From then on the guest gets errors for its files; a creation has no use of those."""
        if self._is_up:
            self._lost = None
            if isinstance(error, ClocheError):
                self.on_files_lost(error.message)
        elif error is not None:
            self._lost = error
            self._fail_guards(error, of_files=True)

    def _judge_files(self, elapsed: float) -> None:
        if self._files is None:
            return
        hung = self._files.look(elapsed)
        if hung is None:
            self.hung, self._hung_s, self._hung_for = None, 0.0, 0.0
        elif elapsed <= TICK_S + LATE_S:
            self._hung_s += hung
            self._hung_for += elapsed
        limit = HOPELESS_S if self._files.is_stopped else SILENT_S
        if self._hung_s < limit and self._hung_for < limit + PATIENCE_S:
            return
        if self.hung is None:
            why = f"nothing done for {self._hung_for:.0f} s: {self._files.cause()}"
            where = f"container {self._id}: its files are not served: {why}"
            self.hung = FilesError(where, hint=self._way_out())
        self._fail_guards(self.hung, of_files=True)

    def _cause(self) -> str:
        """What the host can see of it."""
        if self._cpu().is_stopped:
            return f"QEMU (process {self._vm.pid}) is stopped; kill -CONT lets it go on"
        if self._vm.console.has_panicked:
            return "its kernel panicked and did not restart"
        if self._status is not None and not self._status.done:
            return f"QEMU (process {self._vm.pid}) does not answer either"
        told = self._status.value if self._status is not None else None
        if isinstance(told, dict) and told.get("running") is False:
            return f"QEMU has stopped the VM: {str(told.get('status'))[:40]!r}"
        if self._used > self._counted / 2:
            return "something in it keeps a processor busy"
        return "its agent or its kernel hangs"
