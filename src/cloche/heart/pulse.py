"""Whether the guest still answers.

The agent is asked (`ping`) every second while a request waits for its answer, and every ten seconds
otherwise. Only time counts in which an answer could have come: in which this process ran when it
wanted to, and QEMU's threads did not wait for a processor or a disk. A guest that has been silent
for long enough is known as such: whoever waits for it, or asks it something, gets that error, until
it answers again.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from cloche.base.errors import ClocheError, GuestError
from cloche.base.loop import Future
from cloche.host.cputime import CpuTime

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.base.loop import Loop, Timer
    from cloche.heart.agent import Agent
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


class SilentError(GuestError):
    """The guest does not answer."""


class Pulse:
    """The liveness of one guest."""

    def __init__(self, loop: Loop, vm: Vm, agent: Agent, container_id: str) -> None:
        self.silent: SilentError | None = None
        # QEMU was stopped by a signal when the guest fell silent.
        self.was_stopped = False
        # Until the container exists: what the guest does then may take its time.
        self.is_slow = False
        self._loop = loop
        self._vm = vm
        self._agent = agent
        self._id = container_id
        self._guards: dict[Future, None] = {}
        self._cpu = CpuTime()
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
        self._begin()

    def keep(self) -> None:
        """From now on ask regularly, whether or not anybody else does."""
        self.is_slow = False
        self._loop.call_later(IDLE_S, self._idle)

    def check(self) -> None:
        """Ask now."""
        if self._ping is None and self._agent.broken is None and self._vm.running.done:
            self._ping = self._agent.call("ping")
            self._ping.on_done(self._ponged)

    def require(self) -> None:
        """SilentError where the guest is silent."""
        if self.silent is not None:
            raise self.silent

    def ask(
        self,
        op: str,
        fields: dict[str, Any],
        late: Callable[[Any], object] = lambda _: None,
    ) -> Future:
        """As Agent.call; SilentError where the guest is silent.

        *late* is called with an answer that comes all the same, after that.
        """
        if self.silent is not None:
            future = Future()
            future.fail(self.silent)
            return future
        return self.guard(self._agent.call(op, fields), late)

    def guard(self, work: Future, late: Callable[[Any], object] = lambda _: None) -> Future:
        """As *work*, but SilentError once the guest is known to be silent; *late* as of `ask`."""
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
        if self.silent is not None:
            guarded.fail(self.silent)
        else:
            self._guards[guarded] = None
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
        self.silent = None
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
        kept = self._cpu.look(self._vm.pid, elapsed)
        if self._heard != self._agent.replies or self._vm.is_replaceable:
            self._heard = self._agent.replies
            self._restart()
            self.silent = None
        elif elapsed <= TICK_S + LATE_S:
            self._passed += elapsed
            self._counted += elapsed - kept
            self._used += self._cpu.used
        if self._is_greeted:
            self.check()
        self._judge()
        delay = TICK_S if self.silent is None else IDLE_S
        self._timer = self._loop.call_later(delay, self._tick)

    @property
    def _is_greeted(self) -> bool:
        """Whether the agent is up: nobody is there to be asked while the guest boots."""
        return self._agent.replies > 0

    def _judge(self) -> None:
        limit = (
            BOOT_S if (self._vm.is_booting and not self._is_greeted) or self.is_slow else SILENT_S
        )
        if self._cpu.is_stopped or self._vm.console.has_panicked:
            limit = HOPELESS_S
        if self.silent is not None:
            return
        if self._status is None and self._counted > limit / 2 and self._vm.running.done:
            self._status = self._vm.command(QUERY)
        if self._counted >= limit or self._passed >= limit + PATIENCE_S:
            self._fall_silent()

    def _fall_silent(self) -> None:
        self.was_stopped = self._cpu.is_stopped
        name, why = self._id, f"no answer for {self._passed:.0f} s: {self._cause()}"
        self.silent = SilentError(
            f"container {name}: its guest is silent: {why}",
            hint=f"`cloche kill {name} KILL` and `cloche delete --force {name}` end it in any case",
        )
        guards, self._guards = self._guards, {}
        for guarded in guards:
            guarded.fail(self.silent)
        if self._vm.console.has_panicked and not self.was_stopped:
            words = self._vm.last_words()
            self._vm.kill(
                ClocheError(f"VM: the guest's kernel panicked and did not restart; {words}")
            )

    def _cause(self) -> str:
        """What the host can see of it."""
        if self._cpu.is_stopped:
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
